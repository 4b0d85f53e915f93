// The registers (registers.toml) behind AXI4-Lite, the bus that loads weights, thresholds and masks, and the interrupt.
// Only whole words are written: a write with another strobe changes nothing.
`default_nettype none
`include "registers.vh"
module axil_regs #(
    parameter [127:0] DESIGN_ID = 128'h0,  // first hexadecimal digit highest
    parameter INPUT_BEATS = 1,
    parameter OUTPUT_BEATS = 1,
    parameter UNITS = 1
) (
    input  wire                        aclk,
    input  wire                        aresetn,
    input  wire [`EK_ADDRESS_BITS-1:0] s_axil_awaddr,
    input  wire                        s_axil_awvalid,
    output wire                        s_axil_awready,
    input  wire [31:0]                 s_axil_wdata,
    input  wire [3:0]                  s_axil_wstrb,
    input  wire                        s_axil_wvalid,
    output wire                        s_axil_wready,
    output wire [1:0]                  s_axil_bresp,
    output reg                         s_axil_bvalid,
    input  wire                        s_axil_bready,
    input  wire [`EK_ADDRESS_BITS-1:0] s_axil_araddr,
    input  wire                        s_axil_arvalid,
    output wire                        s_axil_arready,
    output reg  [31:0]                 s_axil_rdata,
    output wire [1:0]                  s_axil_rresp,
    output reg                         s_axil_rvalid,
    input  wire                        s_axil_rready,
    output wire                        irq,
    output reg                         rst,           // of all units
    output reg                         enable,
    output reg  [31:0]                 batch,
    output reg                         load_valid,
    output wire [7:0]                  load_unit,
    output wire [1:0]                  load_memory,
    output wire [11:0]                 load_lane,
    output reg  [19:0]                 load_address,
    output reg  [31:0]                 load_data,
    input  wire                        image_begins,  // pulses
    input  wire                        image_taken,
    input  wire                        misaligned,
    input  wire                        image_given
);
    localparam integer N_INPUT_BEATS = INPUT_BEATS, N_OUTPUT_BEATS = OUTPUT_BEATS, N_UNITS = UNITS;
    localparam W = `EK_LOAD_WINDOW_BITS;

    // ---- writing
    wire [`EK_ADDRESS_BITS-1:0] write_register = {s_axil_awaddr[`EK_ADDRESS_BITS-1:2], 2'b00};
    wire write = s_axil_awvalid & s_axil_wvalid & ~s_axil_bvalid;
    wire word = write & (&s_axil_wstrb);
    wire control = word & write_register == `EK_REG_CONTROL;
    wire reset = control & s_axil_wdata[`EK_CONTROL_RESET];
    wire clear = rst | (control & s_axil_wdata[`EK_CONTROL_CLEAR]);
    wire unused = &{1'b0, s_axil_awaddr[1:0], s_axil_araddr[1:0]};
    assign s_axil_awready = write;
    assign s_axil_wready = write;
    assign s_axil_bresp = 2'b00;
    always @(posedge aclk)
        if (~aresetn) s_axil_bvalid <= 0;
        else s_axil_bvalid <= write | (s_axil_bvalid & ~s_axil_bready);

    reg [2:0] irq_enable;
    reg [31:0] load_select;
    reg [19:0] load_base;
    assign load_unit = load_select[`EK_LOAD_SELECT_UNIT];
    assign load_memory = load_select[`EK_LOAD_SELECT_MEMORY];
    assign load_lane = load_select[`EK_LOAD_SELECT_LANE];
    always @(posedge aclk) begin
        rst <= ~aresetn | reset;
        load_valid <= aresetn & word & s_axil_awaddr[`EK_LOAD_WINDOW_BIT];
        load_address <= load_base + {{(20 - W) {1'b0}}, s_axil_awaddr[W+1:2]};
        load_data <= s_axil_wdata;
        if (~aresetn) begin
            enable <= 0;
            irq_enable <= 0;
            batch <= 1;
            load_select <= 0;
            load_base <= 0;
        end else if (word)
            case (write_register)
                `EK_REG_CONTROL: enable <= s_axil_wdata[`EK_CONTROL_START];
                `EK_REG_IRQ_ENABLE: irq_enable <= s_axil_wdata[2:0];
                `EK_REG_BATCH: batch <= s_axil_wdata;
                `EK_REG_LOAD_SELECT: load_select <= s_axil_wdata;
                `EK_REG_LOAD_BASE: load_base <= s_axil_wdata[19:0];
                default: ;
            endcase
    end

    // ---- images inside, counters
    reg [31:0] inside_count, taken, images, interval, since, cycles_high;
    reg [63:0] cycles;
    wire busy = inside_count != 0;
    wire now_idle = image_given & ~image_begins & inside_count == 1;
    always @(posedge aclk) begin
        if (rst) inside_count <= 0;
        else inside_count <= inside_count + {31'b0, image_begins} - {31'b0, image_given};
        if (clear) begin
            cycles <= 0;
            taken <= 0;
            images <= 0;
            interval <= 0;
            since <= 0;
        end else begin
            if (busy) cycles <= cycles + 1'b1;
            if (image_taken) taken <= taken + 1'b1;
            if (image_given) begin
                images <= images + 1'b1;
                interval <= since;
            end
            since <= image_given ? 1 : since + 1'b1;
        end
    end

    // ---- errors and interrupts: set by events, cleared by writing ones
    reg [1:0] error;
    reg [2:0] irq_status;
    wire [1:0] failures;
    wire [2:0] events;
    assign failures[`EK_ERROR_FRAME] = misaligned;
    assign failures[`EK_ERROR_LOAD_WHILE_BUSY] = load_valid & busy;
    assign events[`EK_IRQ_STATUS_IMAGE] = image_given;
    assign events[`EK_IRQ_STATUS_IDLE] = now_idle;
    assign events[`EK_IRQ_STATUS_ERROR] = |failures;
    wire [1:0] error_clear = word & write_register == `EK_REG_ERROR ? s_axil_wdata[1:0] : 2'b0;
    wire [2:0] irq_clear = word & write_register == `EK_REG_IRQ_STATUS ? s_axil_wdata[2:0] : 3'b0;
    assign irq = |(irq_status & irq_enable);
    always @(posedge aclk)
        if (rst) begin
            error <= 0;
            irq_status <= 0;
        end else begin
            error <= (error & ~error_clear) | failures;
            irq_status <= (irq_status & ~irq_clear) | events;
        end

    // ---- reading
    wire [`EK_ADDRESS_BITS-1:0] read_register = {s_axil_araddr[`EK_ADDRESS_BITS-1:2], 2'b00};
    wire read = s_axil_arvalid & s_axil_arready;
    reg [31:0] status;
    always @* begin
        status = 0;
        status[`EK_STATUS_IDLE] = ~busy;
        status[`EK_STATUS_BUSY] = busy;
        status[`EK_STATUS_FAILED] = |error;
    end
    assign s_axil_arready = ~s_axil_rvalid;
    assign s_axil_rresp = 2'b00;
    always @(posedge aclk) begin
        if (~aresetn) s_axil_rvalid <= 0;
        else s_axil_rvalid <= read | (s_axil_rvalid & ~s_axil_rready);
        if (read & read_register == `EK_REG_CYCLES_LOW) cycles_high <= cycles[63:32];
        if (read)
            case (read_register)
                `EK_REG_MAGIC: s_axil_rdata <= `EK_MAGIC;
                `EK_REG_VERSION: s_axil_rdata <= `EK_VERSION;
                `EK_REG_DESIGN_ID_0: s_axil_rdata <= DESIGN_ID[127:96];
                `EK_REG_DESIGN_ID_1: s_axil_rdata <= DESIGN_ID[95:64];
                `EK_REG_DESIGN_ID_2: s_axil_rdata <= DESIGN_ID[63:32];
                `EK_REG_DESIGN_ID_3: s_axil_rdata <= DESIGN_ID[31:0];
                `EK_REG_UNITS: s_axil_rdata <= N_UNITS;
                `EK_REG_INPUT_BEATS: s_axil_rdata <= N_INPUT_BEATS;
                `EK_REG_OUTPUT_BEATS: s_axil_rdata <= N_OUTPUT_BEATS;
                `EK_REG_CONTROL: s_axil_rdata <= {31'b0, enable};
                `EK_REG_STATUS: s_axil_rdata <= status;
                `EK_REG_ERROR: s_axil_rdata <= {30'b0, error};
                `EK_REG_IRQ_ENABLE: s_axil_rdata <= {29'b0, irq_enable};
                `EK_REG_IRQ_STATUS: s_axil_rdata <= {29'b0, irq_status};
                `EK_REG_TAKEN: s_axil_rdata <= taken;
                `EK_REG_IMAGES: s_axil_rdata <= images;
                `EK_REG_CYCLES_LOW: s_axil_rdata <= cycles[31:0];
                `EK_REG_CYCLES_HIGH: s_axil_rdata <= cycles_high;
                `EK_REG_INTERVAL: s_axil_rdata <= interval;
                `EK_REG_BATCH: s_axil_rdata <= batch;
                `EK_REG_LOAD_SELECT: s_axil_rdata <= load_select;
                `EK_REG_LOAD_BASE: s_axil_rdata <= {12'b0, load_base};
                default: s_axil_rdata <= 0;
            endcase
    end
endmodule
`default_nettype wire
