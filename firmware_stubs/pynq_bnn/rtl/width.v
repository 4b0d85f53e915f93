// Beats of one width become beats of another, bits in order, the lowest first. A frame is IN_BEATS beats; OUT_BEATS are made of it:
// what is more is dropped, what is missing (less than one beat) is zero. Where neither width divides the other, by way of
// their least common multiple.
`default_nettype none
module width #(
    parameter IN_WIDTH = 64,
    parameter OUT_WIDTH = 24,
    parameter IN_BEATS = 3,
    parameter OUT_BEATS = 8
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
    function integer gcd(input integer a, input integer b);
        integer rest, x, y;
        begin
            x = a;
            y = b;
            while (y != 0) begin
                rest = x % y;
                x = y;
                y = rest;
            end
            gcd = x;
        end
    endfunction
    localparam COMMON = IN_WIDTH / gcd(IN_WIDTH, OUT_WIDTH) * OUT_WIDTH;

    generate
        if (IN_WIDTH == OUT_WIDTH && IN_BEATS == OUT_BEATS) begin : g_wires
            assign m_valid = s_valid;
            assign m_data = s_data;
            assign s_ready = m_ready;
            wire unused = &{1'b0, clk, rst};
        end else if (COMMON == IN_WIDTH) begin : g_narrow
            narrow #(.IN_WIDTH(IN_WIDTH), .OUT_WIDTH(OUT_WIDTH), .IN_BEATS(IN_BEATS), .OUT_BEATS(OUT_BEATS)) only (
                .clk(clk), .rst(rst),
                .s_valid(s_valid), .s_ready(s_ready), .s_data(s_data),
                .m_valid(m_valid), .m_ready(m_ready), .m_data(m_data)
            );
        end else if (COMMON == OUT_WIDTH) begin : g_widen
            widen #(.IN_WIDTH(IN_WIDTH), .OUT_WIDTH(OUT_WIDTH), .IN_BEATS(IN_BEATS), .OUT_BEATS(OUT_BEATS)) only (
                .clk(clk), .rst(rst),
                .s_valid(s_valid), .s_ready(s_ready), .s_data(s_data),
                .m_valid(m_valid), .m_ready(m_ready), .m_data(m_data)
            );
        end else begin : g_both
            localparam WORDS = (IN_BEATS * IN_WIDTH + COMMON - 1) / COMMON;
            wire wide_valid, wide_ready, next_valid, next_ready;
            wire [COMMON-1:0] wide, next;
            widen #(.IN_WIDTH(IN_WIDTH), .OUT_WIDTH(COMMON), .IN_BEATS(IN_BEATS), .OUT_BEATS(WORDS)) first (
                .clk(clk), .rst(rst),
                .s_valid(s_valid), .s_ready(s_ready), .s_data(s_data),
                .m_valid(wide_valid), .m_ready(wide_ready), .m_data(wide)
            );
            fifo #(.WIDTH(COMMON), .DEPTH(2)) between (
                .clk(clk), .rst(rst),
                .s_valid(wide_valid), .s_ready(wide_ready), .s_data(wide),
                .m_valid(next_valid), .m_ready(next_ready), .m_data(next)
            );
            narrow #(.IN_WIDTH(COMMON), .OUT_WIDTH(OUT_WIDTH), .IN_BEATS(WORDS), .OUT_BEATS(OUT_BEATS)) second (
                .clk(clk), .rst(rst),
                .s_valid(next_valid), .s_ready(next_ready), .s_data(next),
                .m_valid(m_valid), .m_ready(m_ready), .m_data(m_data)
            );
        end
    endgenerate
endmodule
`default_nettype wire
