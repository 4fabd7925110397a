"""RoBERTa: BERT's layers under other embeddings and another head."""

from __future__ import annotations

from finegates.adapters.bert import BertAdapter


class RobertaAdapter(BertAdapter):
    """As :class:`BertAdapter`; of a classifier, the head is ``classifier`` (it has no pooler).

    XLM-RoBERTa has the same layers.
    """

    model_types = ("roberta", "xlm-roberta")
