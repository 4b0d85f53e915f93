// One beat becomes IN_WIDTH / OUT_WIDTH, the lowest bits first; gives a beat every cycle. What a frame has past OUT_BEATS is
// dropped.
`default_nettype none
module narrow #(
    parameter IN_WIDTH = 32,
    parameter OUT_WIDTH = 8,
    parameter IN_BEATS = 1,
    parameter OUT_BEATS = 4
) (
    input  wire                 clk,
    input  wire                 rst,
    input  wire                 s_valid,
    output wire                 s_ready,
    input  wire [IN_WIDTH-1:0]  s_data,
    output wire                 m_valid,
    input  wire                 m_ready,
    output wire [OUT_WIDTH-1:0] m_data
);
    localparam N = IN_WIDTH / OUT_WIDTH;
    localparam A = N > 1 ? $clog2(N) : 1;
    localparam EXACT = OUT_BEATS == IN_BEATS * N;
    wire drop, beat_ends, frame_ends;
    wire give = m_valid & m_ready;
    wire [A-1:0] at;
    reg [OUT_WIDTH-1:0] word;

    assign m_valid = s_valid & ~drop;
    assign m_data = word;
    assign s_ready = drop | (m_ready & (beat_ends | frame_ends));

    counter #(.COUNT(N)) position (
        .clk(clk), .rst(rst), .step(give), .back(frame_ends), .at(at), .last(beat_ends)
    );

    integer i;
    always @* begin
        word = s_data[0+:OUT_WIDTH];
        for (i = 1; i < N; i = i + 1) if (at == i[A-1:0]) word = s_data[i*OUT_WIDTH+:OUT_WIDTH];
    end

    generate
        if (EXACT) begin : g_no_frame
            assign drop = 1'b0;
            assign frame_ends = 1'b0;
        end else begin : g_frame
            wire last_taken;
            wire take = s_valid & s_ready;
            reg dropping;
            assign drop = dropping;
            every #(.COUNT(IN_BEATS)) beats (.clk(clk), .rst(rst), .step(take), .last(last_taken));
            every #(.COUNT(OUT_BEATS)) wanted (.clk(clk), .rst(rst), .step(give), .last(frame_ends));
            always @(posedge clk)
                if (rst | (take & last_taken)) dropping <= 0;
                else if (give & frame_ends) dropping <= 1;
        end
    endgenerate
endmodule
`default_nettype wire
