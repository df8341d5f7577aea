"""Where a policy looks in the image for each token of a completion.

Letters: B images, M rows, T tokens, N image tokens.
"""

from mindspore import Tensor, nn

from src.models.policy import Policy


class Attention(nn.Cell):
    """The attention of given completions to their images.

    Inputs: inputs (pixels [B, 3, H, W] or features [B, N, C]), completion_ids int32 [M, T]. Returns float32 [M, T, N];
    rows sum to 1. Row t belongs to token t: its query comes from the preceding tokens, as in decoding.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def construct(self, inputs: Tensor, completion_ids: Tensor) -> Tensor:
        return self.policy.attention(self.policy.prefix(inputs), completion_ids)
