"""What generators are told to make, and how they learn to do without: conditions, their checks, and dropping them for guidance."""

from hiergen.generators.conditioning.byte_encoder import ByteTextEncoder, read_words
from hiergen.generators.conditioning.classes import (
    ClassPathEmbedding,
    check_labels,
    class_table,
    count_conditions,
    read_hierarchy,
    unguided_labels,
)
from hiergen.generators.conditioning.kinds import Condition, TextCondition, Unconditional
from hiergen.generators.conditioning.taking import (
    ConditionTable,
    check_condition,
    check_kind,
    condition_table,
    draw_dropped,
    drop_labels,
    embed_condition,
    resolve_labels,
    resolve_texts,
    with_unguided_labels,
)
from hiergen.generators.conditioning.texts import TextPrefix, TextRows, TextTable, check_text_entries

__all__ = [
    "ByteTextEncoder",
    "ClassPathEmbedding",
    "Condition",
    "ConditionTable",
    "TextCondition",
    "TextPrefix",
    "TextRows",
    "TextTable",
    "Unconditional",
    "check_condition",
    "check_kind",
    "check_labels",
    "check_text_entries",
    "class_table",
    "condition_table",
    "count_conditions",
    "draw_dropped",
    "drop_labels",
    "embed_condition",
    "read_hierarchy",
    "read_words",
    "resolve_labels",
    "resolve_texts",
    "unguided_labels",
    "with_unguided_labels",
]
