/* Whether bytes are a plan: header, checksum, tensors, the order of operators. Reads nothing past `size`. */
#include "plan_check.h"

#include <string.h>

#include "edgekit_native.h"

enum { MAX_NAME = 1024 };

/* --- the reason, without stdio ---------------------------------------------------------------------------------- */

typedef struct {
    char *at, *end; /* end: where the closing 0 goes at the latest */
} writer;

static void put(writer *to, const char *text) {
    while (*text != 0 && to->at < to->end) *to->at++ = *text++;
}

static void put_number(writer *to, int64_t number) {
    char digits[24];
    int at = sizeof digits;
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    digits[--at] = 0;
    do {
        digits[--at] = (char)('0' + rest % 10);
    } while ((rest /= 10) != 0);
    if (number < 0) digits[--at] = '-';
    put(to, digits + at);
}

bool ek_need(ek_check *check, bool ok, const char *what, int64_t got) {
    if (ok || check->why == NULL || check->why_size == 0) return ok;
    writer to = {check->why, check->why + check->why_size - 1};
    if (check->where != NULL) {
        put(&to, check->where);
        put(&to, " ");
        put_number(&to, check->index);
        if (check->kind != NULL) {
            put(&to, " (");
            put(&to, check->kind);
            put(&to, ")");
        }
        put(&to, ": ");
    }
    put(&to, what);
    put(&to, ", got ");
    put_number(&to, got);
    *to.at = 0;
    return false;
}

/* --- header ----------------------------------------------------------------------------------------------------- */

/* zlib's CRC-32 (ISO 3309: polynomial 0x04c11db7, bits reversed), eight steps of four bits at a time (Kounavis and
 * Berry 2005): shifted[k][n] is what the four bits n become when k more steps follow. */
static uint32_t crc32_of(const unsigned char *bytes, size_t size) {
    static const uint32_t shifted[8][16] = {
        {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
         0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c},
        {0x00000000, 0x77073096, 0xee0e612c, 0x990951ba, 0x076dc419, 0x706af48f, 0xe963a535, 0x9e6495a3,
         0x0edb8832, 0x79dcb8a4, 0xe0d5e91e, 0x97d2d988, 0x09b64c2b, 0x7eb17cbd, 0xe7b82d07, 0x90bf1d91},
        {0x00000000, 0x4ac21251, 0x958424a2, 0xdf4636f3, 0xf0794f05, 0xbabb5d54, 0x65fd6ba7, 0x2f3f79f6,
         0x3b83984b, 0x71418a1a, 0xae07bce9, 0xe4c5aeb8, 0xcbfad74e, 0x8138c51f, 0x5e7ef3ec, 0x14bce1bd},
        {0x00000000, 0x191b3141, 0x32366282, 0x2b2d53c3, 0x646cc504, 0x7d77f445, 0x565aa786, 0x4f4196c7,
         0xc8d98a08, 0xd1c2bb49, 0xfaefe88a, 0xe3f4d9cb, 0xacb54f0c, 0xb5ae7e4d, 0x9e832d8e, 0x87981ccf},
        {0x00000000, 0x1c26a370, 0x384d46e0, 0x246be590, 0x709a8dc0, 0x6cbc2eb0, 0x48d7cb20, 0x54f16850,
         0xe1351b80, 0xfd13b8f0, 0xd9785d60, 0xc55efe10, 0x91af9640, 0x8d893530, 0xa9e2d0a0, 0xb5c473d0},
        {0x00000000, 0x01c26a37, 0x0384d46e, 0x0246be59, 0x0709a8dc, 0x06cbc2eb, 0x048d7cb2, 0x054f1685,
         0x0e1351b8, 0x0fd13b8f, 0x0d9785d6, 0x0c55efe1, 0x091af964, 0x08d89353, 0x0a9e2d0a, 0x0b5c473d},
        {0x00000000, 0x5019579f, 0xa032af3e, 0xf02bf8a1, 0x9b14583d, 0xcb0d0fa2, 0x3b26f703, 0x6b3fa09c,
         0xed59b63b, 0xbd40e1a4, 0x4d6b1905, 0x1d724e9a, 0x764dee06, 0x2654b999, 0xd67f4138, 0x866616a7},
        {0x00000000, 0xb8bc6765, 0xaa09c88b, 0x12b5afee, 0x8f629757, 0x37def032, 0x256b5fdc, 0x9dd738b9,
         0xc5b428ef, 0x7d084f8a, 0x6fbde064, 0xd7018701, 0x4ad6bfb8, 0xf26ad8dd, 0xe0df7733, 0x58631056},
    };
    uint32_t crc = UINT32_MAX;
    for (; size >= 4; bytes += 4, size -= 4) {
        uint32_t four, next = 0;
        memcpy(&four, bytes, sizeof four);
        crc ^= four;
        for (int k = 0; k < 8; k++) next ^= shifted[7 - k][crc >> 4 * k & 15];
        crc = next;
    }
    for (; size > 0; bytes++, size--) {
        crc ^= *bytes;
        crc = crc >> 4 ^ shifted[0][crc & 15];
        crc = crc >> 4 ^ shifted[0][crc & 15];
    }
    return ~crc;
}

static bool in_file(const ek_check *check, ek_plan_span span) {
    if (span.size == 0) return span.offset == 0;
    return span.offset % 4 == 0 && (uint64_t)span.offset + span.size <= check->size;
}

bool ek_need_span(ek_check *check, ek_plan_span span, int64_t wanted, const char *what) {
    return ek_need(check, span.size == wanted && in_file(check, span), what, span.size);
}

/* Well-formed UTF-8 (RFC 3629, section 4), without control characters but for line ends and tabs where lines are. */
static bool is_text(const unsigned char *at, size_t size, bool lines) {
    const unsigned char *end = at + size;
    while (at < end) {
        const unsigned first = *at++;
        if (lines && (first == '\n' || first == '\r' || first == '\t')) continue;
        if (first < 0x20 || first == 0x7f) return false;
        if (first < 0x80) continue;
        const int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
        if (first < 0xc2 || first > 0xf4 || end - at < more) return false;
        const unsigned lowest = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
        const unsigned highest = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
        if (at[0] < lowest || at[0] > highest) return false;
        for (int i = 1; i < more; i++)
            if ((at[i] & 0xc0) != 0x80) return false;
        at += more;
    }
    return true;
}

static bool check_table(ek_check *c, uint32_t offset, uint32_t count, uint32_t each, const char *what) {
    const uint64_t end = (uint64_t)offset + (uint64_t)count * each;
    return ek_need(c, offset % 4 == 0 && offset >= sizeof(ek_plan_header) && end <= c->size, what, offset);
}

static bool check_header(ek_check *c) {
    if (!ek_need(c, c->size >= sizeof(ek_plan_header), "must be a plan of at least 52 bytes", (int64_t)c->size))
        return false;
    const ek_plan_header *h = c->plan.header;
    const size_t after_crc = offsetof(ek_plan_header, crc32) + sizeof h->crc32;
    return ek_need(c, h->magic == EK_PLAN_MAGIC, "must begin with EKPL: not a plan", h->magic) &&
           ek_need(c, h->major == EK_PLAN_MAJOR, "must be of plan version 1: update edgekit", h->major) &&
           ek_need(c, h->size == c->size, "size must be that of the file: it was cut or added to", h->size) &&
           ek_need(c, h->crc32 == crc32_of(c->plan.bytes + after_crc, c->size - after_crc),
                   "the checksum must be that of the content: the plan is damaged", h->crc32) &&
           ek_need(c, h->tensors >= 1 && h->tensors <= EK_PLAN_MAX_TENSORS, "tensors must be 1 to 4096", h->tensors) &&
           ek_need(c, h->operators >= 1 && h->operators <= EK_PLAN_MAX_OPERATORS, "operators must be 1 to 4096",
                   h->operators) &&
           ek_need(c, h->tensor_size >= sizeof(ek_plan_tensor) && h->tensor_size % 4 == 0,
                   "tensor_size must be a multiple of 4 from 24 on", h->tensor_size) &&
           ek_need(c, h->operator_size >= sizeof(ek_plan_operator) && h->operator_size % 4 == 0,
                   "operator_size must be a multiple of 4 from 80 on", h->operator_size) &&
           check_table(c, h->tensor_offset, h->tensors, h->tensor_size, "the tensors must lie in the file") &&
           check_table(c, h->operator_offset, h->operators, h->operator_size, "the operators must lie in the file") &&
           ek_need_span(c, h->design, h->design.size, "design must lie in the file");
}

/* --- tensors ---------------------------------------------------------------------------------------------------- */

static bool check_tensor(ek_check *c, const ek_plan_tensor *t) {
    const int all = EK_TENSOR_INPUT | EK_TENSOR_OUTPUT | EK_TENSOR_CHANNELS_FIRST;
    const bool bits = t->type == EK_BITS, outside = (t->flags & (EK_TENSOR_INPUT | EK_TENSOR_OUTPUT)) != 0;
    const bool first = (t->flags & EK_TENSOR_CHANNELS_FIRST) != 0;
    return ek_need(c, t->type >= EK_BITS && t->type <= EK_F32, "type must be 1 to 5", t->type) &&
           ek_need(c, bits ? t->coding >= EK_BIPOLAR && t->coding <= EK_TERNARY : t->coding == 0,
                   "coding must be 1 to 4 for bits, else 0", t->coding) &&
           ek_need(c, (t->flags & ~all) == 0, "flags must be of those known", t->flags) &&
           ek_need(c, (t->flags & EK_TENSOR_INPUT) == 0 || (t->flags & EK_TENSOR_OUTPUT) == 0,
                   "cannot be input and output at once", t->flags) &&
           ek_need(c, !first || ((t->flags & EK_TENSOR_INPUT) != 0 && !bits),
                   "channels first is for inputs that are not bits", t->flags) &&
           ek_need(c, t->reserved == 0, "reserved must be 0", t->reserved) &&
           ek_need(c, t->h >= 1 && t->h <= EK_PLAN_MAX_SIDE, "h must be 1 to 65535", t->h) &&
           ek_need(c, t->w >= 1 && t->w <= EK_PLAN_MAX_SIDE, "w must be 1 to 65535", t->w) &&
           ek_need(c, t->c >= 1 && t->c <= EK_PLAN_MAX_CHANNELS, "c must be 1 to 1048576", t->c) &&
           ek_need(c, ek_count_of(t) <= EK_PLAN_MAX_VALUES, "h * w * c must be at most 2^28", ek_count_of(t)) &&
           ek_need_span(c, t->name, t->name.size, "name must lie in the file") &&
           ek_need(c, t->name.size <= MAX_NAME && (!outside || t->name.size >= 1),
                   "name must have 1 to 1024 bytes for inputs and outputs", t->name.size) &&
           ek_need(c, is_text(c->plan.bytes + t->name.offset, t->name.size, false), "name must be UTF-8",
                   t->name.size);
}

/* Whether an earlier input (for an input; output for an output) has the tensor's name. */
static bool is_named_before(const ek_check *c, const ek_plan_tensor *t) {
    const int side = t->flags & (EK_TENSOR_INPUT | EK_TENSOR_OUTPUT);
    for (int32_t i = 0; side != 0 && i < c->index; i++) {
        const ek_plan_tensor *other = ek_tensor_at(&c->plan, i);
        if ((other->flags & side) == 0 || other->name.size != t->name.size) continue;
        if (memcmp(c->plan.bytes + other->name.offset, c->plan.bytes + t->name.offset, t->name.size) == 0) return true;
    }
    return false;
}

static bool check_tensors(ek_check *c) {
    const ek_plan_header *h = c->plan.header;
    uint32_t inputs = 0, outputs = 0;
    c->where = "tensor";
    for (c->index = 0; c->index < (int32_t)h->tensors; c->index++) {
        const ek_plan_tensor *t = ek_tensor_at(&c->plan, c->index);
        if (!check_tensor(c, t)) return false;
        if (!ek_need(c, !is_named_before(c, t), "name must differ from those before on its side", t->name.size))
            return false;
        inputs += (t->flags & EK_TENSOR_INPUT) != 0;
        outputs += (t->flags & EK_TENSOR_OUTPUT) != 0;
    }
    c->where = NULL;
    return ek_need(c, inputs == h->inputs && inputs >= 1, "inputs must be the number of tensors marked so",
                   h->inputs) &&
           ek_need(c, outputs == h->outputs && outputs >= 1, "outputs must be the number of tensors marked so",
                   h->outputs);
}

/* --- operators -------------------------------------------------------------------------------------------------- */

/* Whether one of the first `operators` makes the tensor. */
static bool is_made(const ek_check *c, int32_t tensor, int32_t operators) {
    for (int32_t i = 0; i < operators; i++)
        if (ek_operator_at(&c->plan, i)->out == tensor) return true;
    return false;
}

static bool is_input(const ek_check *c, int32_t tensor) {
    return (ek_tensor_at(&c->plan, tensor)->flags & EK_TENSOR_INPUT) != 0;
}

static bool check_wiring(ek_check *c, const ek_plan_operator *op) {
    static const char *const kinds[] = {
        NULL,  "quantize", "linear",     "threshold", "pool",       "sum",
        "add", "affine",   "requantize", "softmax",   "confidence", "copy",
    };
    const int32_t tensors = (int32_t)c->plan.header->tensors;
    const int32_t inputs = op->kind == EK_ADD ? 2 : 1;
    if (!ek_need(c, op->kind >= EK_QUANTIZE && op->kind <= EK_COPY, "kind must be 1 to 11: update edgekit", op->kind))
        return false;
    c->kind = kinds[op->kind];
    for (int32_t i = 0; i < inputs; i++) {
        const int32_t in = op->in[i];
        if (!ek_need(c, in >= 0 && in < tensors, "an input must be one of the tensors", in) ||
            !ek_need(c, is_input(c, in) || is_made(c, in, c->index), "an input must be made before it is used", in))
            return false;
    }
    return ek_need(c, inputs == 2 || op->in[1] == -1, "must have one input, and -1", op->in[1]) &&
           ek_need(c, op->out >= 0 && op->out < tensors, "out must be one of the tensors", op->out) &&
           ek_need(c, !is_input(c, op->out) && !is_made(c, op->out, c->index), "out must be made once", op->out) &&
           ek_need(c, op->reserved == 0, "reserved must be 0", op->reserved);
}

static bool check_operators(ek_check *c) {
    const int32_t operators = (int32_t)c->plan.header->operators;
    c->where = "operator";
    for (c->index = 0; c->index < operators; c->index++) {
        const ek_plan_operator *op = ek_operator_at(&c->plan, c->index);
        c->kind = NULL;
        if (!check_wiring(c, op) || !ek_check_operator(c, op)) return false;
    }
    c->where = "tensor";
    c->kind = NULL;
    for (c->index = 0; c->index < (int32_t)c->plan.header->tensors; c->index++)
        if (!ek_need(c, is_input(c, c->index) || is_made(c, c->index, operators), "must be an input or made", 0))
            return false;
    return true;
}

int32_t ek_plan_check(const void *plan, size_t size, char *why, size_t why_size) {
    if (why != NULL && why_size > 0) *why = 0;
    if (plan == NULL || (uintptr_t)plan % 8 != 0) return EK_BAD_ARGUMENT;
    ek_check check = {.plan = ek_view_of(plan), .size = size, .why = why, .why_size = why_size};
    if (!check_header(&check) || !check_tensors(&check) || !check_operators(&check)) return EK_BAD_PLAN;
    const ek_plan_span design = check.plan.header->design;
    check.where = NULL;
    const bool text = is_text(check.plan.bytes + design.offset, design.size, true);
    return ek_need(&check, text, "design must be UTF-8", design.size) ? EK_OK : EK_BAD_PLAN;
}
