"""Joint training: the cross-entropy of the fused logits, and nothing else.

L = CE(z, y)
"""

from mmbench.train.method import Method, MethodInfo


class Joint(Method):
    """The control that every balancing method is compared with."""

    info = MethodInfo(
        title="Joint training",
        family="control",
        summary="cross-entropy of the fused logits",
        acts="never: this is the plain training that the others change",
        cost="1 forward, 1 backward",
        min_modalities=1,
        neutral={},
    )
