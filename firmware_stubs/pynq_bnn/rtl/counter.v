// Counts 0 to COUNT - 1 and round again, one at each `step`; `back` makes that step go to 0.
`default_nettype none
module counter #(
    parameter COUNT = 8,
    parameter A = COUNT > 1 ? $clog2(COUNT) : 1  // not to be set
) (
    input  wire         clk,
    input  wire         rst,
    input  wire         step,
    input  wire         back,
    output wire [A-1:0] at,
    output wire         last
);
    generate
        if (COUNT == 1) begin : g_nothing
            assign at = 1'b0;
            assign last = 1'b1;
            wire unused = &{1'b0, clk, rst, step, back};
        end else begin : g_count
            localparam integer END = COUNT - 1;
            reg [A-1:0] value;
            assign at = value;
            assign last = value == END[A-1:0];
            always @(posedge clk)
                if (rst) value <= 0;
                else if (step) value <= last | back ? 0 : value + 1'b1;
        end
    endgenerate
endmodule
`default_nettype wire
