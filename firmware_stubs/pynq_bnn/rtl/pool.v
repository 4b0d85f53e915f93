// Max pool on bits: OR of a window's bits, or AND for the channels whose mask bit is set (sign after a falling normalization).
// Windows of K_H x K_W side by side; rows and columns past the last whole window are dropped. Takes a beat every cycle.
`default_nettype none
`include "registers.vh"
module pool #(
    parameter UNIT = 0,  // what the load bus calls it
    parameter WIDTH = 32,  // channels a beat
    parameter FOLDS = 2,   // beats a pixel
    parameter IN_H = 28,
    parameter IN_W = 28,
    parameter K_H = 2,
    parameter K_W = 2
) (
    input  wire             clk,
    input  wire             rst,
    input  wire             s_valid,
    output wire             s_ready,
    input  wire [WIDTH-1:0] s_data,
    output wire             m_valid,
    input  wire             m_ready,
    output wire [WIDTH-1:0] m_data,
    input  wire             load_valid,
    input  wire [7:0]       load_unit,
    input  wire [1:0]       load_memory,
    input  wire [11:0]      load_lane,
    input  wire [19:0]      load_address,
    input  wire [31:0]      load_data
);
    localparam OUT_H = IN_H / K_H;
    localparam OUT_W = IN_W / K_W;
    localparam ROW = OUT_W * FOLDS;
    localparam AR = ROW > 1 ? $clog2(ROW) : 1;
    localparam AF = FOLDS > 1 ? $clog2(FOLDS) : 1;
    localparam integer N_UNIT = UNIT;
    wire load = load_valid & load_unit == N_UNIT[7:0] & load_memory == `EK_MEMORY_MASK;
    wire unused = &{1'b0, load_lane, load_address, load_data};

    // ---- where the beat stands: fold, column and row of its window, window, row of windows
    wire step = s_valid & s_ready;
    wire [AF-1:0] fold;
    wire fold_ends, line_ends, k_w_ends, k_h_ends;
    wire in_columns, in_rows;
    wire pixel = step & fold_ends;
    wire line = pixel & line_ends;
    counter #(.COUNT(FOLDS)) folds (.clk(clk), .rst(rst), .step(step), .back(1'b0), .at(fold), .last(fold_ends));
    every #(.COUNT(IN_W)) columns (.clk(clk), .rst(rst), .step(pixel), .last(line_ends));
    generate
        if (IN_W % K_W == 0) begin : g_all_columns
            assign in_columns = 1'b1;
            every #(.COUNT(K_W)) k_w (.clk(clk), .rst(rst), .step(pixel), .last(k_w_ends));
        end else begin : g_some_columns
            localparam A = K_W > 1 ? $clog2(K_W) : 1;
            wire [A-1:0] at;
            wire unused_at = &{1'b0, at};
            counter #(.COUNT(K_W)) k_w (.clk(clk), .rst(rst), .step(pixel), .back(line_ends), .at(at), .last(k_w_ends));
            reg past;  // the last whole window of the row
            assign in_columns = ~past;
            wire last_window;
            every #(.COUNT(OUT_W)) windows (.clk(clk), .rst(rst), .step(pixel & k_w_ends & ~past), .last(last_window));
            always @(posedge clk)
                if (rst | line) past <= 0;
                else if (pixel & k_w_ends & last_window) past <= 1;
        end
        if (IN_H % K_H == 0) begin : g_all_rows
            assign in_rows = 1'b1;
            every #(.COUNT(K_H)) k_h (.clk(clk), .rst(rst), .step(line), .last(k_h_ends));
        end else begin : g_some_rows
            localparam A = K_H > 1 ? $clog2(K_H) : 1;
            wire [A-1:0] at;
            wire unused_at = &{1'b0, at};
            wire image_ends, last_window;
            reg past;
            assign in_rows = ~past;
            every #(.COUNT(IN_H)) rows (.clk(clk), .rst(rst), .step(line), .last(image_ends));
            counter #(.COUNT(K_H)) k_h (
                .clk(clk), .rst(rst), .step(line), .back(image_ends), .at(at), .last(k_h_ends)
            );
            every #(.COUNT(OUT_H)) windows (.clk(clk), .rst(rst), .step(line & k_h_ends & ~past), .last(last_window));
            always @(posedge clk)
                if (rst | (line & image_ends)) past <= 0;
                else if (line & k_h_ends & last_window) past <= 1;
        end
    endgenerate

    // ---- OR of bits that the mask turned; the row of windows lies in a memory
    (* ram_style = "distributed" *) reg [WIDTH-1:0] row[0:ROW-1];
    wire [WIDTH-1:0] mask;
    wire in_window = in_columns & in_rows;
    reg first_row, first_column;  // of its window
    reg [AR-1:0] window_start, at;
    wire [AR-1:0] next_start = line ? 0 : window_start + N_FOLDS[AR-1:0];
    localparam integer N_FOLDS = FOLDS;
    wire [WIDTH-1:0] stored = row[at];
    wire [WIDTH-1:0] turned = s_data ^ mask;
    wire [WIDTH-1:0] joined = first_row & first_column ? turned : turned | stored;
    wire complete = in_window & k_w_ends & k_h_ends;
    assign m_valid = s_valid & complete;
    assign s_ready = m_ready | ~complete;
    assign m_data = joined ^ mask;
    always @(posedge clk) begin
        if (step & in_window) row[at] <= joined;
        if (rst) begin
            first_row <= 1;
            first_column <= 1;
            window_start <= 0;
            at <= 0;
        end else begin
            if (line) first_row <= k_h_ends | ~in_rows;
            if (pixel) first_column <= k_w_ends | line_ends;
            if (pixel & (k_w_ends | line_ends)) window_start <= next_start;
            if (step) at <= ~fold_ends ? at + 1'b1 : k_w_ends | line_ends ? next_start : window_start;
        end
    end

    // ---- the mask
    genvar i;
    generate
        for (i = 0; i < (WIDTH + 31) / 32; i = i + 1) begin : g_lane
            localparam integer I = i;
            localparam BITS = WIDTH - 32 * i < 32 ? WIDTH - 32 * i : 32;
            (* ram_style = "distributed" *) reg [BITS-1:0] words[0:FOLDS-1];
            assign mask[32*i+:BITS] = words[fold];
            always @(posedge clk)
                if (load & load_lane == I[11:0]) words[load_address[AF-1:0]] <= load_data[BITS-1:0];
        end
    endgenerate
endmodule
`default_nettype wire
