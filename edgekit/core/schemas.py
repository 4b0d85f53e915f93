"""What each command prints with --json, as JSON Schema (2020-12). Keys may be added within version 1, never renamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.core.curves import HOW
from edgekit.core.figure import PROVENANCES
from edgekit.core.jobs import STATES
from edgekit.core.manifest import METRICS
from edgekit.core.target import STATES as TARGET_STATES

Schema = dict[str, Any]

NUMBER: Schema = {"type": ["number", "null"]}
COUNT: Schema = {"type": "integer", "minimum": 0}
COUNT_OR_NULL: Schema = {"type": ["integer", "null"], "minimum": 0}
TEXT: Schema = {"type": "string", "minLength": 1}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
FLAG: Schema = {"type": "boolean"}
FRACTION: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
PROVENANCE: Schema = {"enum": [*PROVENANCES, "mixed", None]}  # mixed: of several boards or intervals
COUNTS: Schema = {"type": "object", "additionalProperties": COUNT}


def table(**properties: Schema) -> Schema:
    """An object that has all these keys, and may have more."""
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def rows(entry: Schema) -> Schema:
    """A list of entries."""
    return {"type": "array", "items": entry}


def output(**properties: Schema) -> Schema:
    """A command's object: these keys and `"v":1`."""
    return table(v={"const": 1}, **properties)


LATENCY = table(mean=NUMBER, p50=NUMBER, p95=NUMBER, p99=NUMBER)
ENERGY = table(mean=NUMBER, provenance=PROVENANCE, on=TEXT_OR_NULL)
MEMORY = table(
    parts_bytes=COUNT,
    weights_file_bytes=COUNT_OR_NULL,
    weights_bytes=COUNT_OR_NULL,
    buffers_bytes=COUNT,
    base_bytes=COUNT,
    opened_bytes=COUNT,
    ran_bytes=COUNT,
    mapped_bytes=COUNT,
    peak_bytes=COUNT,
    times=NUMBER,
    provenance=PROVENANCE,
    on=TEXT,
)
BEFORE_AFTER = table(before=NUMBER, after=NUMBER)

ROLES: Schema = {
    "type": "object",
    "additionalProperties": table(version=COUNT, expires=TEXT, days_left=NUMBER),
}
TARGET = table(
    name=TEXT, version=COUNT, profiles=rows(TEXT), state={"enum": list(TARGET_STATES)}, label=TEXT, size=COUNT
)
MEASURE_OR_NULL: Schema = {  # null: nobody may sign what boards only measure
    "anyOf": [{"type": "null"}, table(version=COUNT, expires=TEXT, targets=rows(TEXT))]
}
SIGNED_ROOT: dict[
    str, Schema
] = {  # enforced: versions that came into force; waiting: why the next one has not
    "root_version": COUNT,
    "enforced": rows(COUNT),
    "signed": rows(TEXT),
    "waiting": rows(TEXT),
}
JOB_STATE: Schema = {"enum": ["pending", *STATES]}  # pending: the board has not said anything about it yet
JOB_DEVICES: Schema = {
    "type": "object",
    "additionalProperties": table(state=JOB_STATE, reason=TEXT_OR_NULL, detail=TEXT_OR_NULL),
}
JOB = table(job_id=TEXT, action=TEXT, target=TEXT_OR_NULL, to=TEXT, policy=TEXT_OR_NULL)
DEVICE = table(
    name=TEXT,
    profile=TEXT_OR_NULL,
    tags=rows(TEXT),
    online=FLAG,
    last_seen=NUMBER,
    bundle=TEXT_OR_NULL,
    records=COUNT,
    requests=COUNT,
    accuracy=FRACTION,
    exit_counts=COUNTS,
    latency_ms=LATENCY,
    energy_mj=ENERGY,
)

ALERT = table(
    id=COUNT,
    rule=TEXT,
    kind=TEXT,
    severity=TEXT,
    subject=TEXT,
    state=TEXT,
    value=NUMBER,
    text=TEXT,
    since=NUMBER,
)
SILENCE = table(id=COUNT, rule=TEXT_OR_NULL, selector=TEXT, until=NUMBER, by=TEXT, why=TEXT)

EXIT_SHARES = rows({"type": "number", "minimum": 0, "maximum": 1})
CURVES: Schema = table(
    metric={"enum": list(METRICS)},
    count=COUNT,
    static=rows(table(name=TEXT, cost_share=FRACTION, quality=FRACTION, ms=NUMBER)),
    budget=rows(
        table(
            budget=FRACTION,
            cost_share=FRACTION,
            quality=FRACTION,
            static=FRACTION,
            low=NUMBER,
            high=NUMBER,
            exit_shares=EXIT_SHARES,
            ms=NUMBER,
        )
    ),
    lead={
        "anyOf": [
            {"type": "null"},
            table(mean=NUMBER, low=NUMBER, high=NUMBER, until=FRACTION, nowhere_below=FLAG),
        ]
    },
    anytime=rows(
        table(
            deadline_ms=NUMBER,
            requests=COUNT,
            quality=FRACTION,
            in_time=FRACTION,
            ms=NUMBER,
            exit_shares=EXIT_SHARES,
        )
    ),
    anytime_how={"enum": [*HOW, None]},
    provenance=PROVENANCE,
    on=TEXT_OR_NULL,
)
CURVES_OR_NULL: Schema = {"anyOf": [{"type": "null"}, CURVES]}  # null: one exit, or nothing to compare by

OVERLAY_OR_NULL: Schema = {  # of a binary network on a board with an FPGA; all of it estimated
    "anyOf": [
        {"type": "null"},
        table(
            design_id=TEXT,
            folder=TEXT_OR_NULL,
            clock_mhz=NUMBER,
            interval_cycles=COUNT,
            latency_cycles=COUNT,
            images_per_second=NUMBER,
            luts=COUNT,
            ffs=COUNT,
            bram36=NUMBER,
            provenance=TEXT,
            layers=rows(
                table(
                    name=TEXT,
                    what=TEXT,
                    pe={"type": ["integer", "null"]},
                    simd={"type": ["integer", "null"]},
                    cycles=COUNT,
                    luts=COUNT,
                    ffs=COUNT,
                    bram36=NUMBER,
                )
            ),
        ),
    ]
}

WAVE = table(
    wave=COUNT, name=TEXT, state=TEXT, boards=COUNT, states=COUNTS, verdict={"type": ["object", "null"]}
)
ROLLOUT_ROW = table(
    rollout_id=TEXT,
    target=TEXT,
    to=TEXT,
    state=TEXT,
    why=TEXT_OR_NULL,
    wave=COUNT,
    waves=COUNT,
    boards=COUNTS,
)
ROLLOUT = table(
    rollout_id=TEXT,
    target=TEXT,
    to=TEXT,
    state=TEXT,
    why=TEXT_OR_NULL,
    boards=COUNTS,
    waves=rows(WAVE),
    left_out=rows(table(why=TEXT_OR_NULL, boards=COUNT)),
    actions=rows(TEXT),
    audit=rows(table(at=NUMBER, who=TEXT, action=TEXT, text={"type": "string"})),
)
PREVIEW = table(
    boards=COUNT,
    waves=rows(table(name=TEXT, boards=COUNT, profiles=COUNTS)),
    left_out=rows(table(why=TEXT, boards=COUNT)),
    warnings=rows(TEXT),
)

TRAIN_BITS = table(weights=COUNT, activations=COUNT, gradients=COUNT, errors=COUNT)

OUTPUTS: Mapping[str, Schema] = {
    "train": output(
        recipe=TEXT,
        title=TEXT,
        source=TEXT,
        model=TEXT,
        output=TEXT,
        sha256=TEXT,
        seed=COUNT,
        epochs=COUNT,
        samples=table(train=COUNT, held_out=COUNT),
        accuracy=rows(FRACTION),
        accuracy_before={"anyOf": [{"type": "null"}, rows(FRACTION)]},  # null: it started from fresh weights
        loss=rows(NUMBER),
        curve=rows(table(epoch=COUNT, losses={"type": "object"}, accuracy=rows(FRACTION))),
        parameters=COUNT,
        macs=COUNT,
        weight_bytes=COUNT,
        size_bytes=COUNT,
        seconds=NUMBER,
        rounds=rows(table(density=FRACTION, ticket=rows(FRACTION), control=rows(FRACTION))),
        adapted={
            "anyOf": [
                {"type": "null"},
                table(
                    payload_bits=COUNT,
                    table_bits=COUNT,
                    bits_per_weight=NUMBER,
                    loss_before=NUMBER,
                    loss_after=NUMBER,
                    widths=COUNTS,
                    accepted=rows(COUNT),
                ),
            ]
        },
    ),
    "train list": output(
        recipes=rows(table(name=TEXT, title=TEXT, source=TEXT, about=TEXT, bits=TRAIN_BITS, teacher=FLAG))
    ),
    "convert": output(
        bundle=TEXT,
        profile=TEXT,
        size_bytes=BEFORE_AFTER,
        latency_ms=table(before=LATENCY, after=LATENCY, provenance=PROVENANCE, on=TEXT_OR_NULL),
        accuracy=table(metric={"enum": list(METRICS)}, before=FRACTION, after=FRACTION),
        exits=rows(
            table(
                name=TEXT, accuracy=FRACTION, cost_share=FRACTION, latency_mean_ms=NUMBER, agreement=FRACTION
            )
        ),
        curves=CURVES_OR_NULL,
        limits=table(met=FLAG, missed=rows(TEXT)),
        dropped=rows(table(layer=TEXT, step=TEXT, why=TEXT)),
        notes=rows(TEXT),
        overlay=OVERLAY_OR_NULL,
        tried=rows(
            table(
                label=TEXT,
                metric={"enum": list(METRICS)},
                lost=NUMBER,
                sqnr_db=NUMBER,
                size_bytes=COUNT,
                latency_ms=NUMBER,
                provenance=PROVENANCE,
                chosen=FLAG,
                why=TEXT,
            )
        ),
    ),
    "inspect": output(
        model=TEXT,
        size_bytes=COUNT,
        opset={"type": ["integer", "null"], "minimum": 0},  # null: a .tflite file
        inputs=rows(table(name=TEXT, dtype=TEXT, shape=rows(COUNT), layout=TEXT)),
        exits=rows(table(name=TEXT, output=TEXT)),
        parameters=COUNT,
        macs=COUNT,
        bytes=COUNT,
        layers=rows(
            table(
                name=TEXT,
                op=TEXT,
                stage=COUNT,
                macs=COUNT,
                bytes=COUNT,
                format=TEXT,
                estimated_ms=NUMBER,
                slow=TEXT_OR_NULL,
                not_binary=TEXT_OR_NULL,
            )
        ),
        profile={"type": ["object", "null"]},
    ),
    "inspect bundle": output(
        bundle=TEXT,
        content_id=TEXT,
        size_bytes=COUNT,
        profiles=rows(TEXT),
        inputs=rows(table(name=TEXT, dtype=TEXT, shape=rows(COUNT))),
        labels={"anyOf": [{"type": "null"}, rows(TEXT)]},
        macs=NUMBER,
        stages=rows(table(parts=rows(table(backend=TEXT, file=TEXT)))),
        exits=rows(table(name=TEXT, stage=COUNT, cost_share=FRACTION)),
        operating_points=rows(
            table(thresholds=rows(NUMBER), cost_share=FRACTION, exit_shares=EXIT_SHARES, quality=FRACTION)
        ),
        executes_code=FLAG,
        golden_cases=COUNT,
    ),
    "report": output(bundle=TEXT, report=TEXT),
    "run": output(
        answers=rows(
            table(
                input=TEXT,
                outputs={"type": "object"},
                label={"type": ["string", "integer", "null"]},
                exit=TEXT,
                confidence=FRACTION,
                latency_ms=NUMBER,
                deadline_missed=FLAG,
            )
        )
    ),
    "bench": output(
        policy=TEXT,
        requests=COUNT,
        latency_ms=LATENCY,
        latency_provenance=PROVENANCE,
        deadline_missed=COUNT_OR_NULL,
        exit_counts=COUNTS,
        cost_share=FRACTION,
        accuracy=FRACTION,
        energy_mj=ENERGY,
        memory={"anyOf": [MEMORY, {"type": "null"}]},
        curves=CURVES_OR_NULL,
        bundle=TEXT,
        on=TEXT,
    ),
    "demo": output(
        boards=rows(
            table(
                name=TEXT,
                profile=TEXT,
                bundle=TEXT_OR_NULL,
                online=FLAG,
                requests=COUNT,
                accuracy=FRACTION,
                exit_counts=COUNTS,
                latency_ms=LATENCY,
                energy_mj=ENERGY,
            )
        ),
        fp32_accuracy=FRACTION,
        budget_over_full_latency=NUMBER,
        telemetry=table(sent=COUNT, received=COUNT),
    ),
    "profile list": output(profiles=rows(table(name=TEXT, title=TEXT, fast_formats=rows(TEXT)))),
    "profile show": output(profile=table(name=TEXT, title=TEXT)),
    "profile check": output(file=TEXT, name=TEXT, warnings=rows(TEXT)),
    "profile measure": output(
        file=TEXT,
        name=TEXT,
        backend=TEXT,
        threads=COUNT,
        networks=COUNT,
        skipped=COUNT,
        left_out=COUNT,
        fast_formats=rows(TEXT),
        int8_activation=TEXT_OR_NULL,
        int8_over_float32={"type": "object", "additionalProperties": NUMBER},
        fit_error=table(median=NUMBER, worst=NUMBER),
        seconds=NUMBER,
    ),
    "profile refine": output(
        file=TEXT,
        name=TEXT,
        groups=rows(table(group=TEXT, factor=NUMBER)),
        untouched=rows(TEXT),
        requests=COUNT,
        boards=COUNT,
        bundles=COUNT,
        simulated=COUNT,
        held_out={"enum": ["bundle", "board"]},
        error=BEFORE_AFTER,
    ),
    "native": output(
        abi=COUNT,
        cpu_features=rows(TEXT),
        kernels=rows(table(family=TEXT, name=TEXT, built=FLAG, supported=FLAG, chosen=FLAG)),
    ),
    "repo init": output(
        folder=TEXT,
        keys={"type": "object"},
        root_threshold=COUNT,
        roles=ROLES,
        targets=rows(TARGET),
        measure=MEASURE_OR_NULL,
    ),
    "agent set-up": output(supervisor=TEXT, start=rows(TEXT), unit=TEXT_OR_NULL),
    "agent unit": output(unit=TEXT),
    "repo environment": output(
        environment=TEXT, name=TEXT, version=COUNT, content_id=TEXT, wheels=rows(table(name=TEXT))
    ),
    "repo revoke": output(target=TEXT, revoked=FLAG, targets_version=COUNT),
    "repo rotate": output(role=TEXT, **SIGNED_ROOT),
    "repo sign": {
        "anyOf": [
            output(**SIGNED_ROOT),
            output(files=rows(table(file=TEXT, version=COUNT, signed=rows(TEXT)))),
            output(cancelled=rows(COUNT)),
        ]
    },
    "repo refresh": output(renewed=COUNTS, versions=COUNTS, waiting=rows(TEXT)),
    "repo measure": output(key=TEXT, targets_version=COUNT),
    "repo add": output(target=TEXT, content_id=TEXT, added=FLAG, targets_version=COUNT),
    "repo status": output(
        roles=ROLES,
        targets=rows(TARGET),
        measure=MEASURE_OR_NULL,
        keys=rows(table(id=TEXT, name=TEXT_OR_NULL, roles=rows(TEXT), file=TEXT_OR_NULL)),
        pending=rows(table(version=COUNT, file=TEXT, wants=rows({"type": "object"}))),
        problems=rows(TEXT),
    ),
    "push": {
        "anyOf": [
            output(job_id=TEXT, target=TEXT, devices=JOB_DEVICES, published=FLAG),
            output(rollout=ROLLOUT, published=FLAG),  # with --canary
        ]
    },
    "fleet rollout start": {"anyOf": [output(rollout=ROLLOUT), output(preview=PREVIEW)]},
    "fleet rollout list": output(rollouts=rows(ROLLOUT_ROW)),
    "fleet rollout show": output(rollout=ROLLOUT),
    "fleet rollout pause": output(rollout=ROLLOUT),
    "fleet rollout resume": output(rollout=ROLLOUT),
    "fleet rollout abort": output(rollout=ROLLOUT),
    "fleet rollout rollback": output(rollout=ROLLOUT),
    "agent": output(
        boot_id=TEXT,
        requests=COUNT,
        records=table(made=COUNT, acked=COUNT, held=COUNT, dropped=COUNT),
        bundle=TEXT_OR_NULL,
    ),
    "fleet serve": output(url=TEXT, token_file=TEXT),
    "fleet enroll": {
        "anyOf": [
            output(name=TEXT, fleet=TEXT, folder=TEXT, files=rows(TEXT)),
            output(
                boards=rows(table(name=TEXT, folder=TEXT, state=TEXT, why=TEXT_OR_NULL)),
                left=COUNT,
                broker_reloaded=FLAG,
            ),
        ]
    },
    "fleet revoke": output(revoked=rows(table(name=TEXT, revoked_at=NUMBER)), broker_reloaded=FLAG),
    "fleet configure": output(job_id=TEXT, action=TEXT, config={"type": "object"}, devices=JOB_DEVICES),
    "fleet stick": output(
        folder=TEXT,
        boards={"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        left_out={"type": "object", "additionalProperties": TEXT},
        expires=NUMBER,
        files=rows(TEXT),
    ),
    "fleet status": output(
        boards=table(enrolled=COUNT, online=COUNT), requests=COUNT, latency_ms=LATENCY, exit_counts=COUNTS
    ),
    "fleet user list": output(users=rows(table(name=TEXT, role=TEXT, created=NUMBER))),
    "fleet user add": output(name=TEXT, role=TEXT),
    "fleet user remove": output(name=TEXT, removed=FLAG),
    "fleet user role": output(name=TEXT, role=TEXT),
    "fleet user password": output(name=TEXT),
    "fleet token list": output(tokens=rows(table(name=TEXT, role=TEXT, created=NUMBER, expires=NUMBER))),
    "fleet token add": output(name=TEXT, role=TEXT, expires=NUMBER, file=TEXT),
    "fleet token remove": output(name=TEXT, removed=FLAG),
    "fleet login-link": output(url=TEXT, expires=NUMBER),
    "fleet audit": output(
        lines=rows(
            table(id=COUNT, at=NUMBER, who=TEXT, action=TEXT, subject=TEXT, detail={"type": "object"})
        ),
        next=COUNT_OR_NULL,
    ),
    "fleet devices": {"anyOf": [output(devices=rows(DEVICE)), output(device=DEVICE)]},
    "fleet alerts list": output(
        total=COUNT, counts=COUNTS, alerts=rows(ALERT), rules=rows(table(name=TEXT)), silences=rows(SILENCE)
    ),
    "fleet alerts check": output(
        file=TEXT_OR_NULL, rules=rows(table(name=TEXT, kind=TEXT, severity=TEXT)), receivers=COUNT
    ),
    "fleet alerts silence": output(silence=SILENCE),
    "fleet alerts unsilence": output(id=COUNT),
    "fleet alerts test": output(batch=TEXT, messages=rows(table(to=TEXT, sent=NUMBER, why=TEXT_OR_NULL))),
    "fleet events": output(
        events=rows(table(at=NUMBER, device=TEXT, kind=TEXT, detail={"type": "object"}, text=TEXT))
    ),
    "fleet export": output(what=TEXT, file=TEXT, rows=COUNT, bytes=COUNT, since=NUMBER, until=NUMBER),
    "fleet bundles": {
        "anyOf": [
            output(bundles=rows(table(bundle=TEXT, boards=COUNT, requests=COUNT, latency_ms=LATENCY))),
            output(
                bundle=table(name=TEXT, versions=rows({"type": "object"}), changes=rows({"type": "object"}))
            ),
        ]
    },
    "fleet jobs": {"anyOf": [output(jobs=rows(JOB)), output(job=JOB)]},
}
