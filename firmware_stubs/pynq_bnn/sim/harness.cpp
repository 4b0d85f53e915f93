// The overlay, compiled by Verilator, behind a plain C ABI: AXI4-Lite reads and writes, AXI4-Stream in and out, a clock.
// runtime/overlay/simulation.py builds and opens it. One simulation is used by one thread at a time.
#include <cstdint>
#include <deque>
#include <vector>

#include "Vedgekit_overlay.h"
#include "verilated.h"

namespace {

struct Beat {
    uint64_t data;
    uint64_t cycle;  // in which it passed
    bool last;
};

struct Random {  // xorshift64*, so that a seed means the same everywhere
    uint64_t state;
    bool below(uint32_t percent) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return (state * UINT64_C(2685821657736338717) >> 33) % 100 < percent;
    }
};

class Simulation {
  public:
    explicit Simulation(uint64_t seed) : random_{seed * 2 + 1} {
        context_.randReset(2);  // whatever is not reset starts as noise
        context_.randSeed(static_cast<int>(seed % 0x7fffffff) + 1);
        top_ = new Vedgekit_overlay(&context_);
        top_->s_axil_bready = 1;
        top_->s_axil_rready = 1;
        top_->s_axil_wstrb = 0xf;
        top_->s_axil_awvalid = top_->s_axil_wvalid = top_->s_axil_arvalid = 0;
        top_->aresetn = 0;
        for (int i = 0; i < 4; i++) tick();
        top_->aresetn = 1;
        tick();
    }
    ~Simulation() {
        top_->final();
        delete top_;
    }
    Simulation(const Simulation &) = delete;
    Simulation &operator=(const Simulation &) = delete;

    // One clock cycle: what is offered settles, what passes is noted, the edge.
    void tick() {
        if (!offering_ && !input_.empty() && !random_.below(stall_in_)) offering_ = true;
        const bool taking = room_ > 0 && !random_.below(stall_out_);
        top_->s_axis_tvalid = offering_;
        if (offering_) {
            top_->s_axis_tdata = input_.front().data;
            top_->s_axis_tlast = input_.front().last;
        }
        top_->m_axis_tready = taking;
        top_->aclk = 0;
        top_->eval();
        if (offering_ && top_->s_axis_tready) {
            input_.pop_front();
            offering_ = false;
            taken_++;
        }
        if (taking && top_->m_axis_tvalid) {
            output_.push_back({top_->m_axis_tdata, cycle_, top_->m_axis_tlast != 0});
            room_--;
        }
        top_->aclk = 1;
        top_->eval();
        cycle_++;
    }

    bool write(uint32_t address, const uint32_t *values, size_t count) {
        for (size_t i = 0; i < count; i++) {
            top_->s_axil_awaddr = address + 4 * i;
            top_->s_axil_wdata = values[i];
            top_->s_axil_awvalid = top_->s_axil_wvalid = 1;
            bool passed = false;
            for (int wait = 0; wait < 16 && !passed; wait++) {
                top_->aclk = 0;
                top_->eval();
                passed = top_->s_axil_awready && top_->s_axil_wready;
                tick();
            }
            top_->s_axil_awvalid = top_->s_axil_wvalid = 0;
            if (!passed) return false;
        }
        tick();  // the last answer
        return true;
    }

    bool read(uint32_t address, uint32_t *value) {
        top_->s_axil_araddr = address;
        top_->s_axil_arvalid = 1;
        bool passed = false;
        for (int wait = 0; wait < 16 && !passed; wait++) {
            top_->aclk = 0;
            top_->eval();
            passed = top_->s_axil_arready;
            tick();
        }
        top_->s_axil_arvalid = 0;
        for (int wait = 0; wait < 16; wait++) {
            top_->aclk = 0;
            top_->eval();
            const bool valid = top_->s_axil_rvalid;
            *value = top_->s_axil_rdata;
            tick();
            if (valid) return passed;
        }
        return false;
    }

    void send(const uint64_t *beats, size_t count) {
        for (size_t i = 0; i < count; i++) input_.push_back({beats[i], 0, i + 1 == count});
    }

    // Run until `count` beats or a last one have come; those that came are given.
    size_t receive(uint64_t *beats, uint64_t *cycles, size_t count, uint64_t limit, bool *last) {
        size_t got = 0;
        *last = false;
        for (uint64_t left = limit; got < count && !*last;) {
            if (output_.empty()) {
                if (left-- == 0) break;
                room_ = count - got;
                tick();
                continue;
            }
            beats[got] = output_.front().data;
            cycles[got++] = output_.front().cycle;
            *last = output_.front().last;
            output_.pop_front();
        }
        room_ = 0;
        return got;
    }

    // Forget what is still to go in, as a DMA engine does that is reset.
    void drop() {
        input_.clear();
        output_.clear();
        offering_ = false;
    }

    void stall(uint32_t in, uint32_t out) {
        stall_in_ = in;
        stall_out_ = out;
    }
    uint64_t cycle() const { return cycle_; }
    uint64_t taken() const { return taken_; }
    bool irq() const { return top_->irq; }

  private:
    VerilatedContext context_;
    Vedgekit_overlay *top_;
    Random random_;
    std::deque<Beat> input_, output_;
    bool offering_ = false;  // a beat once offered stays until it is taken
    size_t room_ = 0;
    uint64_t cycle_ = 0, taken_ = 0;
    uint32_t stall_in_ = 0, stall_out_ = 0;  // percent of cycles
};

Simulation *of(void *simulation) { return static_cast<Simulation *>(simulation); }

}  // namespace

extern "C" {

void *ek_sim_new(uint64_t seed) { return new Simulation(seed); }
void ek_sim_delete(void *sim) { delete of(sim); }
void ek_sim_stall(void *sim, uint32_t in, uint32_t out) { of(sim)->stall(in, out); }
void ek_sim_send(void *sim, const uint64_t *beats, size_t count) { of(sim)->send(beats, count); }
void ek_sim_drop(void *sim) { of(sim)->drop(); }
int32_t ek_sim_irq(void *sim) { return of(sim)->irq(); }
uint64_t ek_sim_cycle(void *sim) { return of(sim)->cycle(); }
uint64_t ek_sim_taken(void *sim) { return of(sim)->taken(); }
void ek_sim_tick(void *sim, uint64_t count) {
    for (; count > 0; count--) of(sim)->tick();
}
int32_t ek_sim_write(void *sim, uint32_t address, const uint32_t *values, size_t count) {
    return of(sim)->write(address, values, count) ? 0 : -1;
}
int32_t ek_sim_read(void *sim, uint32_t address, uint32_t *value) { return of(sim)->read(address, value) ? 0 : -1; }
size_t ek_sim_receive(void *sim, uint64_t *beats, uint64_t *cycles, size_t count, uint64_t limit, int32_t *last) {
    bool ended = false;
    const size_t got = of(sim)->receive(beats, cycles, count, limit, &ended);
    *last = ended;
    return got;
}
}
