"""EBMC's trust distillation alone: a teacher of own heads, then the fused prediction.

Stage 1:  L = sum_m CE(u_m, y);  encoders and own heads are then kept, frozen, as the teachers t_m
Stage 2:  L = CE(z, y) + lambda tau^2 / M sum_m mean_i w_m[i] KL( softmax(t_m / tau)[i]
                                                                  || softmax(z / tau)[i] )
w_m[i] = e_m[i] / sum_l e_l[i],   e = exp(-H) / (log(1 + H^2) + 0.1),   H = H(softmax t_m[i])

He, Ding, Wang, Li, Teng, Ji: Enhance-then-Balance (EBMC), CVPR 2026, arXiv 2604.12518, eq. 13-16.
"""

from mmbench.train.energy import EnhanceThenBalance, TrustOptions
from mmbench.train.method import MethodInfo


class EBMCTrust(EnhanceThenBalance):
    """Trains own heads first, and then lets the fused prediction learn from those that are sure."""

    info = MethodInfo(
        title="Instance-aware trust distillation (of EBMC)",
        family="teacher",
        summary="distils each modality's own head, as it was after a first stage, into the fused "
        "prediction, the more the surer it is of the sample",
        acts="in a first stage that trains own heads, and in the loss of the second",
        cost="2 forwards, 1 backward; before that as many epochs of own heads, 1 forward and 1 "
        "backward a step",
        authors="He, Ding, Wang, Li, Teng, Ji",
        venue="CVPR",
        year=2026,
        arxiv="2604.12518",
        departures=(
            "The teacher is in evaluation mode throughout: in the released code it is a part of "
            "the model and its dropout comes back in the second epoch.",
            "Teachers are asked of samples, not of means over a dialogue.",
            "The second stage has a new optimiser; the released code goes on with its state.",
        ),
        neutral={"enhance_epochs": 0, "imtd_weight": 0.0},
    )

    class Config(TrustOptions):
        pass
