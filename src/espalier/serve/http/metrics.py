"""What a server has done, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from espalier.serve.model import ServedModel

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one server.

    Args:
        models: whose engines are looked at when somebody asks.
    """

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engines(list(models)))
        self.responses = Counter(
            "espalier_responses", "Responses.", ("route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "espalier_response_seconds", "From request to the end of its response.", ("route",),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.first = Histogram(
            "espalier_first_byte_seconds", "From request to the first byte of its answer.", ("route",),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)


class _Engines:
    """What the engines count themselves."""

    def __init__(self, models: list[ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterator[Any]:
        counters: dict[str, tuple[str, Any]] = {
            "requests": ("Requests that were taken.", lambda e: e.counts.requests),
            "refused": ("Requests that were refused because too many waited.", lambda e: e.counts.refused),
            "cancelled": ("Requests whose client went away.", lambda e: e.counts.cancelled),
            "failed": (
                "Requests that took too long, or at which the model failed.",
                lambda e: e.counts.failed,
            ),
            "generated_tokens": ("Tokens of answers.", lambda e: e.counts.tokens),
            "prompt_tokens_read": ("Tokens of prompts that were computed.", lambda e: e.rows.read),
            "prompt_tokens_shared": ("Tokens of prompts that were known already.", lambda e: e.rows.shared),
        }
        gauges: dict[str, tuple[str, Any]] = {
            "waiting": ("Requests that wait for a place.", lambda e: e.waiting),
            "running": ("Answers that are being written.", lambda e: e.running),
        }
        for kind, named in ((CounterMetricFamily, counters), (GaugeMetricFamily, gauges)):
            for name, (words, read) in named.items():
                family = kind(f"espalier_{name}", words, labels=["model"])
                for model in self._models:
                    family.add_metric([model.name], read(model.engine))
                yield family
