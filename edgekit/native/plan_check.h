/* Inside the library: what the two files that check a plan share. */
#ifndef EDGEKIT_PLAN_CHECK_H
#define EDGEKIT_PLAN_CHECK_H

#include "plan_read.h"

/* Sums stay below this, so that twice a sum, its constants and its counts fit 32 bits in every kernel (linear.h). */
#define EK_SUM_BOUND (INT64_C(1) << 29)
/* Different borders that windows of one operator can have; each takes a row of tables. */
enum { EK_MAX_CLASSES = 4096 };

typedef struct {
    ek_plan_view plan;
    size_t size;
    const char *where; /* "tensor", "operator", or NULL: the header */
    int32_t index;
    const char *kind; /* of an operator, or NULL */
    char *why;
    size_t why_size;
} ek_check;

/* ok; where it is not, writes "WHERE INDEX (KIND): WHAT, got GOT" as the reason. */
bool ek_need(ek_check *check, bool ok, const char *what, int64_t got);

/* Whether a span lies in the file and holds exactly `wanted` bytes. */
bool ek_need_span(ek_check *check, ek_plan_span span, int64_t wanted, const char *what);

/* One operator whose tensors exist: parameters, shapes, data. */
bool ek_check_operator(ek_check *check, const ek_plan_operator *op);

#endif
