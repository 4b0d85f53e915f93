// The way out: marks the last beat of every `batch`-th image, where a transfer ends, and tells the registers of each image.
`default_nettype none
module stream_out #(
    parameter BEATS = 5  // of an image
) (
    input  wire        clk,
    input  wire        rst,
    input  wire [31:0] batch,
    input  wire        s_valid,
    output wire        s_ready,
    input  wire [63:0] s_data,
    output wire        m_valid,
    input  wire        m_ready,
    output wire [63:0] m_data,
    output wire        m_last,
    output wire        image_given  // pulse
);
    reg [31:0] images;  // of this transfer
    wire last;
    wire give = m_valid & m_ready;
    wire [31:0] next = images + 1'b1;
    assign m_valid = s_valid;
    assign s_ready = m_ready;
    assign m_data = s_data;
    assign m_last = last & next >= batch;
    assign image_given = give & last;
    every #(.COUNT(BEATS)) beats (.clk(clk), .rst(rst), .step(give), .last(last));
    always @(posedge clk)
        if (rst) images <= 0;
        else if (image_given) images <= m_last ? 0 : next;
endmodule
`default_nettype wire
