// A first-in-first-out queue of DEPTH beats or a few more (a power of two) in LUT RAM. Its s_ready is a register, so that a
// chain of units has no long path of ready signals.
`default_nettype none
module fifo #(
    parameter WIDTH = 8,
    parameter DEPTH = 2
) (
    input  wire             clk,
    input  wire             rst,
    input  wire             s_valid,
    output wire             s_ready,
    input  wire [WIDTH-1:0] s_data,
    output wire             m_valid,
    input  wire             m_ready,
    output wire [WIDTH-1:0] m_data
);
    localparam A = DEPTH > 2 ? $clog2(DEPTH) : 1;
    (* ram_style = "distributed" *) reg [WIDTH-1:0] memory[0:(1<<A)-1];
    reg [A-1:0] head, tail;
    reg [A:0] count;  // its top bit: full
    wire put = s_valid & s_ready;
    wire take = m_valid & m_ready;

    assign s_ready = ~count[A];
    assign m_valid = count != 0;
    assign m_data = memory[head];

    always @(posedge clk) begin
        if (put) memory[tail] <= s_data;
        if (rst) begin
            head <= 0;
            tail <= 0;
            count <= 0;
        end else begin
            if (put) tail <= tail + 1'b1;
            if (take) head <= head + 1'b1;
            if (put & ~take) count <= count + 1'b1;
            if (take & ~put) count <= count - 1'b1;
        end
    end
endmodule
`default_nettype wire
