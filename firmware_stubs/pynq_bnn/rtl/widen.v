// OUT_WIDTH / IN_WIDTH beats become one, the first in the lowest bits; takes a beat every cycle. A frame's last beat is filled
// up with zeros, and beats past OUT_BEATS are dropped.
`default_nettype none
module widen #(
    parameter IN_WIDTH = 8,
    parameter OUT_WIDTH = 32,
    parameter IN_BEATS = 4,
    parameter OUT_BEATS = 1
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
    localparam N = OUT_WIDTH / IN_WIDTH;
    localparam A = $clog2(N);
    localparam EXACT = IN_BEATS == OUT_BEATS * N;
    reg [(N-1)*IN_WIDTH-1:0] held;
    wire [A-1:0] at;
    wire drop, full, frame_ends;
    wire complete = ~drop & (full | frame_ends);
    wire take = s_valid & s_ready;

    assign m_valid = s_valid & complete;
    assign s_ready = m_ready | ~complete;

    counter #(.COUNT(N)) position (
        .clk(clk), .rst(rst), .step(take), .back(complete | drop), .at(at), .last(full)
    );

    genvar i;
    generate
        for (i = 0; i < N - 1; i = i + 1) begin : g_word
            localparam integer I = i;
            wire [IN_WIDTH-1:0] word = held[i*IN_WIDTH+:IN_WIDTH];
            wire here = at == I[A-1:0];
            if (EXACT) begin : g_exact
                assign m_data[i*IN_WIDTH+:IN_WIDTH] = word;
            end else begin : g_filled
                assign m_data[i*IN_WIDTH+:IN_WIDTH] = at > I[A-1:0] ? word : here ? s_data : {IN_WIDTH{1'b0}};
            end
            always @(posedge clk) if (take & here) held[i*IN_WIDTH+:IN_WIDTH] <= s_data;
        end
        if (EXACT) begin : g_no_frame
            assign m_data[(N-1)*IN_WIDTH+:IN_WIDTH] = s_data;
            assign drop = 1'b0;
            assign frame_ends = 1'b0;
        end else begin : g_frame
            localparam B = IN_BEATS > 1 ? $clog2(IN_BEATS) : 1;
            wire [B-1:0] beat;
            assign m_data[(N-1)*IN_WIDTH+:IN_WIDTH] = full ? s_data : {IN_WIDTH{1'b0}};
            counter #(.COUNT(IN_BEATS)) beats (
                .clk(clk), .rst(rst), .step(take), .back(1'b0), .at(beat), .last(frame_ends)
            );
            if (OUT_BEATS * N < IN_BEATS) begin : g_drop
                localparam integer WANTED = OUT_BEATS * N;
                assign drop = beat >= WANTED[B-1:0];
            end else begin : g_keep
                assign drop = 1'b0;
                wire unused = &{1'b0, beat};
            end
        end
    endgenerate
endmodule
`default_nettype wire
