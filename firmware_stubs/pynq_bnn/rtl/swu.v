// Sliding-window unit: an image comes row by row, FOLDS beats a pixel; out go the windows of a convolution, one for each output
// pixel, K_H * K_W * FOLDS beats each (kernel row, kernel column, fold). Pixels outside the image are all PAD_ONE.
//
// The rows lie in block RAM, in a ring of twice the kernel's height, so that the next image's first rows are written while the
// last windows of this one are read: a beat a cycle, without a gap between images.
`default_nettype none
module swu #(
    parameter WIDTH = 32,  // bits a beat
    parameter FOLDS = 2,   // beats a pixel
    parameter IN_H = 30,
    parameter IN_W = 30,
    parameter K_H = 3,
    parameter K_W = 3,
    parameter STRIDE_H = 1,
    parameter STRIDE_W = 1,
    parameter PAD_TOP = 0,
    parameter PAD_LEFT = 0,
    parameter PAD_BOTTOM = 0,
    parameter PAD_RIGHT = 0,
    parameter PAD_ONE = 0
) (
    input  wire             clk,
    input  wire             rst,
    input  wire             s_valid,
    output wire             s_ready,
    input  wire [WIDTH-1:0] s_data,
    output reg              m_valid,
    input  wire             m_ready,
    output wire [WIDTH-1:0] m_data
);
    localparam OUT_H = (IN_H + PAD_TOP + PAD_BOTTOM - K_H) / STRIDE_H + 1;
    localparam OUT_W = (IN_W + PAD_LEFT + PAD_RIGHT - K_W) / STRIDE_W + 1;
    localparam BELOW = IN_H + PAD_TOP - (OUT_H - 1) * STRIDE_H - K_H;  // rows under the last window
    localparam ROWS = 2 * (K_H > STRIDE_H ? K_H : STRIDE_H) + (BELOW > 0 ? BELOW : 0);
    localparam ROW = IN_W * FOLDS;  // words
    localparam A = ROWS * ROW > 1 ? $clog2(ROWS * ROW) : 1;
    localparam S = $clog2(ROWS);   // of a slot of the ring
    localparam H = $clog2(IN_H + PAD_TOP + PAD_BOTTOM + STRIDE_H + ROWS + 1) + 1;  // of rows, signed
    localparam COLUMNS = (IN_W + PAD_LEFT + PAD_RIGHT) * FOLDS;
    localparam C = $clog2(COLUMNS) > A ? $clog2(COLUMNS) : A;  // of a word in a padded row
    // Constants in their widths; rows count from the padded image's top.
    localparam integer N_ROWS = ROWS, N_ROW = ROW, N_PAD_TOP = PAD_TOP, N_BOTTOM = PAD_TOP + IN_H, N_K_H = K_H;
    localparam integer N_STRIDE_H = STRIDE_H, N_LAST_SLOT = ROWS - 1, N_STEP = STRIDE_W * FOLDS;
    localparam integer N_LEFT = PAD_LEFT * FOLDS, N_RIGHT = (PAD_LEFT + IN_W) * FOLDS - 1;

    // Where a slot's row would begin if it had the padding on its left.
    function [A-1:0] start(input [S-1:0] slot);
        integer i;
        reg [A-1:0] address;
        begin
            address = -N_LEFT[A-1:0];
            start = address;
            for (i = 0; i < ROWS; i = i + 1) begin
                if (slot == i[S-1:0]) start = address;
                address = address + N_ROW[A-1:0];
            end
        end
    endfunction

    // How many slots on, in the ring.
    function [S-1:0] onward(input [S-1:0] slot, input [H-1:0] rows);
        reg [H-1:0] sum;
        begin
            sum = {{(H - S) {1'b0}}, slot} + rows;
            if (sum >= N_ROWS[H-1:0]) sum = sum - N_ROWS[H-1:0];
            onward = sum[S-1:0];
        end
    endfunction

    // ---- writing
    reg [A-1:0] write_address;
    reg signed [H-1:0] held;  // whole rows written and not yet released; rows can be released before they come
    wire put = s_valid & s_ready;
    wire row_written, ring_ends;
    assign s_ready = held < $signed(N_ROWS[H-1:0]);
    every #(.COUNT(ROW)) words (.clk(clk), .rst(rst), .step(put), .last(row_written));
    every #(.COUNT(ROWS)) slots (.clk(clk), .rst(rst), .step(put & row_written), .last(ring_ends));
    always @(posedge clk)
        if (rst) write_address <= 0;
        else if (put) write_address <= row_written & ring_ends ? 0 : write_address + 1'b1;

    // ---- where the reader stands: output row and column, kernel row and column, fold
    wire go;
    wire fold_ends, k_w_ends, k_h_ends, out_w_ends, out_h_ends;
    wire line_ends = fold_ends & k_w_ends;
    wire window_ends = line_ends & k_h_ends;
    wire row_ends = window_ends & out_w_ends;
    every #(.COUNT(FOLDS)) fold (.clk(clk), .rst(rst), .step(go), .last(fold_ends));
    every #(.COUNT(K_W)) k_w (.clk(clk), .rst(rst), .step(go & fold_ends), .last(k_w_ends));
    every #(.COUNT(K_H)) k_h (.clk(clk), .rst(rst), .step(go & line_ends), .last(k_h_ends));
    every #(.COUNT(OUT_W)) out_w (.clk(clk), .rst(rst), .step(go & window_ends), .last(out_w_ends));
    every #(.COUNT(OUT_H)) out_h (.clk(clk), .rst(rst), .step(go & row_ends), .last(out_h_ends));

    reg [C-1:0] left, column;  // words of the padded row: where the window begins, where it is read
    wire [C-1:0] next_left = out_w_ends ? 0 : left + N_STEP[C-1:0];
    always @(posedge clk)
        if (rst) begin
            left <= 0;
            column <= 0;
        end else if (go) begin
            if (window_ends) left <= next_left;
            column <= window_ends ? next_left : line_ends ? left : column + 1'b1;
        end

    // ---- rows: which are read, how many must be there, how many are released
    wire [H-1:0] need, release_rows;
    wire row_inside, column_inside;
    reg [S-1:0] first_slot, slot;  // of the window's first row inside the image; of the row being read
    wire [S-1:0] next_first = onward(first_slot, release_rows);
    wire [S-1:0] slot_after = slot == N_LAST_SLOT[S-1:0] ? 0 : slot + 1'b1;
    always @(posedge clk)
        if (rst) begin
            first_slot <= 0;
            slot <= 0;
            held <= 0;
        end else begin
            if (go & row_ends) first_slot <= next_first;
            if (go & line_ends) slot <= row_ends ? next_first : window_ends ? first_slot : row_inside ? slot_after : slot;
            held <= held + $signed({{(H - 1) {1'b0}}, put & row_written}) - $signed(go & row_ends ? release_rows : {H{1'b0}});
        end

    generate
        if (PAD_TOP + PAD_BOTTOM == 0) begin : g_rows
            localparam integer LAST = IN_H - (OUT_H - 1) * STRIDE_H;
            assign need = N_K_H[H-1:0];
            assign release_rows = out_h_ends ? LAST[H-1:0] : N_STRIDE_H[H-1:0];
            assign row_inside = 1'b1;
        end else begin : g_padded_rows
            reg [H-1:0] top, row;  // the window's first row, the row being read
            wire [H-1:0] next_top = out_h_ends ? 0 : top + N_STRIDE_H[H-1:0];
            wire [H-1:0] end_row = top + N_K_H[H-1:0];
            wire [H-1:0] bottom = end_row < N_BOTTOM[H-1:0] ? end_row : N_BOTTOM[H-1:0];
            wire [H-1:0] first = top > N_PAD_TOP[H-1:0] ? top : N_PAD_TOP[H-1:0];
            wire [H-1:0] next_first_row =
                out_h_ends ? N_BOTTOM[H-1:0] : next_top > N_PAD_TOP[H-1:0] ? next_top : N_PAD_TOP[H-1:0];
            assign need = bottom - first;
            assign release_rows = next_first_row - first;
            assign row_inside = row >= N_PAD_TOP[H-1:0] & row < N_BOTTOM[H-1:0];
            always @(posedge clk)
                if (rst) begin
                    top <= 0;
                    row <= 0;
                end else if (go & line_ends) begin
                    if (row_ends) top <= next_top;
                    row <= row_ends ? next_top : window_ends ? top : row + 1'b1;
                end
        end
        if (PAD_LEFT + PAD_RIGHT == 0) begin : g_columns
            assign column_inside = 1'b1;
        end else begin : g_padded_columns
            assign column_inside = column >= N_LEFT[C-1:0] & column <= N_RIGHT[C-1:0];
        end
    endgenerate

    // ---- reading
    wire move = ~m_valid | m_ready;
    assign go = move & (held >= $signed(need));
    wire [A-1:0] read_address = start(slot) + column[A-1:0];
    wire [WIDTH-1:0] word;
    reg outside;
    assign m_data = outside ? {WIDTH{PAD_ONE != 0}} : word;
    memory #(.WIDTH(WIDTH), .DEPTH(ROWS * ROW), .A(A), .BLOCK(1)) rows (
        .clk(clk),
        .write(put), .write_address(write_address), .write_data(s_data),
        .read(move), .read_address(read_address), .read_data(word)
    );
    always @(posedge clk) begin
        if (move) outside <= ~(row_inside & column_inside);
        if (rst) m_valid <= 0;
        else if (move) m_valid <= go;
    end
endmodule
`default_nettype wire
