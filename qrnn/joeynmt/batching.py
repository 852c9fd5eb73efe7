"""Training batches of sentences of similar length, which joeynmt does not make."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from qrnn.checks import check_size


class BucketSize(int):
    """A batch size that carries `bucket`: how many batches' sentences are sorted together.

    joeynmt passes the batch size on to its sampler, but no option that it does not know.
    """

    bucket: int

    def __new__(cls, batch_size: int, bucket: int) -> "BucketSize":
        check_size("batch_size", batch_size)
        check_size("bucket", bucket)
        size = super().__new__(cls, batch_size)
        size.bucket = bucket
        return size


def batches(sampler: Any) -> Iterator[list[int]]:
    """What joeynmt's SentenceBatchSampler yields, each sentence once, but for the order.

    The sentences come in the sampler's own order, which training shuffles. Those for `bucket`
    batches at a time are sorted by length and cut into batches, and these are shuffled by the
    sampler's generator, which joeynmt seeds anew in every epoch.
    """
    data, size = sampler.sampler.data_source, int(sampler.batch_size)
    lengths = (
        # both sides are padded: by the longer one the two together waste the least
        (max(len(source), len(target)), len(target), index)
        for index in sampler.sampler
        for _, source, target in [data[index]]
        if source is not None  # longer than max_length
    )
    while bucket := sorted(islice(lengths, size * sampler.batch_size.bucket)):
        indices = [index for *_, index in bucket]
        cut = [indices[i : i + size] for i in range(0, len(indices), size)]
        order = torch.randperm(len(cut), generator=sampler.sampler.generator)
        yield from (cut[i] for i in order.tolist())
