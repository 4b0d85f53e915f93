// The way in: counts an image's beats, lets none in while not enabled (but finishes an image), tells the registers.
`default_nettype none
module stream_in #(
    parameter BEATS = 128  // of an image
) (
    input  wire        clk,
    input  wire        rst,
    input  wire        enable,
    input  wire        s_valid,
    output wire        s_ready,
    input  wire [63:0] s_data,
    input  wire        s_last,
    output wire        m_valid,
    input  wire        m_ready,
    output wire [63:0] m_data,
    output wire        image_begins,  // pulses
    output wire        image_taken,
    output wire        misaligned     // the transfer ended inside an image
);
    reg first;
    wire last;
    wire open = enable | ~first;
    wire take = s_valid & s_ready;
    assign m_valid = s_valid & open;
    assign s_ready = m_ready & open;
    assign m_data = s_data;
    assign image_begins = take & first;
    assign image_taken = take & last;
    assign misaligned = take & s_last & ~last;
    every #(.COUNT(BEATS)) beats (.clk(clk), .rst(rst), .step(take), .last(last));
    always @(posedge clk)
        if (rst) first <= 1;
        else if (take) first <= last;
endmodule
`default_nettype wire
