"""What one step of the engine did and where its time went."""

from __future__ import annotations

from dataclasses import dataclass

RING_SIZE = 1024  # steps that an engine remembers


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step. Its seconds follow each other without a gap: plan, prepare, model, sample, deliver."""

    id: int  # counts from 0; `Finished.step_ids` names these
    started_s: float  # seconds of the monotonic clock
    plan_s: float  # choosing who runs and finding blocks; recording the outcome as well
    prepare_s: float  # the schedule laid out as tensors
    model_s: float  # hidden states and logits
    sample_s: float  # tokens chosen and log-probabilities; on a GPU, the wait for what the model has launched as well
    deliver_s: float  # text made of tokens, and readers woken
    num_requests: int
    num_waiting: int  # left in the queue
    num_prefill_tokens: int  # of prompts, those that a preemption took away included
    num_decode_tokens: int
    num_cached_tokens: int  # of prompts that began in this step: not computed, but found
    num_preemptions: int
    num_failed: int

    @property
    def total_s(self) -> float:
        return self.plan_s + self.prepare_s + self.model_s + self.sample_s + self.deliver_s
