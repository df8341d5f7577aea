"""Where the decoder looks in the image for each token of a completion.

Letters: B images, G group size, M = B*G rows (row = b*G + g), T tokens, N image tokens.
"""

from mindspore import Tensor, nn, ops

from src.models.captioner.decoder import shift_right
from src.models.captioner.policy import Captioner
from src.models.layers import attention_weights


class CrossAttention(nn.Cell):
    """Cross-attention over image tokens at each token of given completions, mean over heads and layers.

    Of all layers, since each adds what it sees to the hidden state that the token is chosen from; of all heads, since
    what one of them means is not known. Row t belongs to token t: it is asked by the tokens before it, as in decoding.
    Inputs: inputs (pixels [B, 3, H, W] or features [B, N, C]), completion_ids int32 [M, T]. Returns float32 [M, T, N];
    rows sum to 1, and image tokens are in the order of the encoder's grid, row by row.
    """

    def __init__(self, captioner: Captioner, bos_id: int) -> None:
        super().__init__()
        self.captioner = captioner
        self.bos_id = bos_id

    def construct(self, inputs: Tensor, completion_ids: Tensor) -> Tensor:
        decoder = self.captioner.decoder
        memory = self.captioner.memory(inputs)
        states = decoder.states(shift_right(completion_ids, self.bos_id), memory)
        layers: tuple[Tensor, ...] = ()
        for index, layer in enumerate(decoder.layers):
            key, _ = memory[index]
            weights = attention_weights(layer.cross_queries(states[index], key.shape[0]), key)  # [B, H, G*T, N]
            layers += (ops.mean(weights, 1).reshape(*completion_ids.shape, -1),)
        return ops.mean(ops.stack(layers), 0)
