// Folded matrix-vector-threshold unit: MH rows times a vector of MW values, PE rows and SIMD values at once, one pair of folds a
// cycle, so SF * NF = MW / SIMD * MH / PE cycles a vector, without a gap between vectors. Weights are bits (1: +1, 0: -1).
//
// IN_BITS 1: values are bits of -1 and +1, products XNOR, sums popcounts. IN_BITS 8: values are unsigned bytes, sums signed.
// THRESHOLDS 1: gives bits, sum >= threshold. THRESHOLDS 0: gives the sums over TERMS products as int32 (the terms from TERMS
// to MW have weight bit 1 and input bit 0, and count nothing).
// After Umuroglu et al. 2017 (FINN), section 4.2.
`default_nettype none
`include "registers.vh"
module mvu #(
    parameter UNIT = 0,  // what the load bus calls it
    parameter IN_BITS = 1,
    parameter SIMD = 32,
    parameter PE = 8,
    parameter MW = 288,
    parameter MH = 64,
    parameter TERMS = 288,
    parameter ACCW = 9,  // bits of a threshold
    parameter THRESHOLDS = 1,
    parameter BLOCK_RAM = 1
) (
    input  wire                                clk,
    input  wire                                rst,
    input  wire                                s_valid,
    output wire                                s_ready,
    input  wire [IN_BITS*SIMD-1:0]             s_data,
    output reg                                 m_valid,
    input  wire                                m_ready,
    output reg  [(THRESHOLDS ? PE : 32*PE)-1:0] m_data,
    input  wire                                load_valid,
    input  wire [7:0]                          load_unit,
    input  wire [1:0]                          load_memory,
    input  wire [11:0]                         load_lane,
    input  wire [19:0]                         load_address,
    input  wire [31:0]                         load_data
);
    localparam SF = MW / SIMD;
    localparam NF = MH / PE;
    localparam D = SF * NF;
    localparam AW = D > 1 ? $clog2(D) : 1;
    localparam AS = SF > 1 ? $clog2(SF) : 1;
    localparam AN = NF > 1 ? $clog2(NF) : 1;
    localparam PARTW = IN_BITS == 1 ? $clog2(SIMD + 1) : 9 + $clog2(SIMD);  // of a sum over SIMD products
    localparam SUMW = ACCW > PARTW ? ACCW : PARTW;
    localparam integer N_UNIT = UNIT;
    wire load = load_valid & load_unit == N_UNIT[7:0];
    wire unused = &{1'b0, load_memory, load_lane, load_address, load_data};

    // ---- the pair of folds; values of the first row fold come from outside, for the others from a copy
    wire stall = m_valid & ~m_ready;
    wire from_outside, sf_ends;
    wire go = ~stall & (s_valid | ~from_outside);
    wire [AS-1:0] sf;
    wire [AW-1:0] weight_address;
    wire [IN_BITS*SIMD-1:0] values;
    assign s_ready = ~stall & from_outside;
    counter #(.COUNT(SF)) input_fold (.clk(clk), .rst(rst), .step(go), .back(1'b0), .at(sf), .last(sf_ends));
    wire all_end;
    counter #(.COUNT(D)) weight_fold (.clk(clk), .rst(rst), .step(go), .back(1'b0), .at(weight_address), .last(all_end));
    generate
        if (NF == 1) begin : g_direct
            assign from_outside = 1'b1;
            assign values = s_data;
            wire unused_folds = &{1'b0, sf, all_end};
        end else begin : g_copied
            (* ram_style = "distributed" *) reg [IN_BITS*SIMD-1:0] copy[0:SF-1];
            reg first_rows;
            assign from_outside = first_rows;
            assign values = first_rows ? s_data : copy[sf];
            always @(posedge clk) begin
                if (go & first_rows) copy[sf] <= s_data;
                if (rst) first_rows <= 1;
                else if (go & sf_ends) first_rows <= all_end;
            end
        end
    endgenerate

    // ---- stage 1: weights and values side by side
    wire [PE*SIMD-1:0] word;
    reg [IN_BITS*SIMD-1:0] values1;
    reg valid1, first1, last1;
    weights #(.WIDTH(PE * SIMD), .DEPTH(D), .A(AW), .BLOCK(BLOCK_RAM)) weight_memory (
        .clk(clk), .read(~stall), .address(weight_address), .word(word),
        .load(load & load_memory == `EK_MEMORY_WEIGHTS), .load_lane(load_lane), .load_address(load_address[AW-1:0]),
        .load_data(load_data)
    );
    reg row_starts;  // the next pair is the first of its rows
    always @(posedge clk) begin
        if (rst) row_starts <= 1;
        else if (go) row_starts <= sf_ends;
        if (~stall) begin
            values1 <= values;
            first1 <= row_starts;
            last1 <= sf_ends;
        end
        if (rst) valid1 <= 0;
        else if (~stall) valid1 <= go;
    end

    // ---- stage 2: the sums of SIMD products; stage 3: the sums of rows
    reg valid2, first2, last2;
    always @(posedge clk) begin
        if (~stall) begin
            first2 <= first1;
            last2 <= last1;
        end
        if (rst) valid2 <= 0;
        else if (~stall) valid2 <= valid1;
        if (rst) m_valid <= 0;
        else if (~stall) m_valid <= valid2 & last2;
    end

    wire [PARTW-1:0] all_values;  // of bytes: what the weights' signs are taken from
    wire [AN-1:0] nf;
    wire nf_ends;
    wire unused_parts = &{1'b0, all_values, nf, nf_ends};
    counter #(.COUNT(NF)) row_fold (
        .clk(clk), .rst(rst), .step(~stall & valid2 & last2), .back(1'b0), .at(nf), .last(nf_ends)
    );
    generate
        if (IN_BITS == 1) begin : g_no_values
            assign all_values = 0;
        end else begin : g_values
            wire [7+$clog2(SIMD):0] sum;
            bytesum #(.N(SIMD)) values_sum (.bytes(values1), .sum(sum));
            assign all_values = {1'b0, sum};
        end
    endgenerate
    genvar p, s;
    generate
        for (p = 0; p < PE; p = p + 1) begin : g_pe
            wire [SIMD-1:0] w = word[p*SIMD+:SIMD];
            wire [PARTW-1:0] part;
            reg [PARTW-1:0] part2;
            reg [SUMW-1:0] sum;
            wire [SUMW-1:0] part_wide;
            wire [SUMW-1:0] next = (first2 ? {SUMW{1'b0}} : sum) + part_wide;
            always @(posedge clk)
                if (~stall) begin
                    part2 <= part;
                    if (valid2) sum <= next;
                end
            if (IN_BITS == 1) begin : g_bits
                popcount #(.N(SIMD)) agreeing (.bits(~(w ^ values1)), .count(part));
                assign part_wide = {{(SUMW - PARTW) {1'b0}}, part2};
            end else begin : g_bytes
                wire [8*SIMD-1:0] plus;  // the values whose weight is +1
                wire [7+$clog2(SIMD):0] plus_sum;
                for (s = 0; s < SIMD; s = s + 1) begin : g_value
                    assign plus[8*s+:8] = values1[8*s+:8] & {8{w[s]}};
                end
                bytesum #(.N(SIMD)) plus_values (.bytes(plus), .sum(plus_sum));
                assign part = {plus_sum, 1'b0} - all_values;
                assign part_wide = {{(SUMW - PARTW) {part2[PARTW-1]}}, part2};
            end
            if (THRESHOLDS != 0) begin : g_threshold
                localparam integer P = p;
                (* ram_style = "distributed" *) reg [ACCW-1:0] thresholds[0:NF-1];
                wire [ACCW-1:0] threshold = thresholds[nf];
                wire reached;
                if (IN_BITS == 1) begin : g_unsigned
                    assign reached = next >= {{(SUMW - ACCW) {1'b0}}, threshold};
                end else begin : g_signed
                    assign reached = $signed(next) >= $signed({{(SUMW - ACCW) {threshold[ACCW-1]}}, threshold});
                end
                always @(posedge clk) begin
                    if (~stall) m_data[p] <= reached;
                    if (load & load_memory == `EK_MEMORY_THRESHOLDS & load_lane == P[11:0])
                        thresholds[load_address[AN-1:0]] <= load_data[ACCW-1:0];
                end
            end else begin : g_sum
                localparam integer N_TERMS = TERMS;
                wire [31:0] wide;
                if (IN_BITS == 1) begin : g_unsigned
                    assign wide = {{(31 - SUMW) {1'b0}}, next, 1'b0} - N_TERMS;
                end else begin : g_signed
                    assign wide = {{(32 - SUMW) {next[SUMW-1]}}, next};
                end
                always @(posedge clk) if (~stall) m_data[32*p+:32] <= wide;
            end
        end
    endgenerate
endmodule
`default_nettype wire
