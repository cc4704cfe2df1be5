import torch

from tests.references.official import import_segment_anything, randomize
from vpexp.models.layers import MLP, LayerNorm2d, MLPBlock


@torch.no_grad()
def test_layer_norm_2d__equals_official():
    import_segment_anything()
    from segment_anything.modeling.common import LayerNorm2d as OfficialLayerNorm2d

    official = randomize(OfficialLayerNorm2d(7))
    layer = LayerNorm2d(7)
    layer.load_state_dict(official.state_dict())
    features = 3 * torch.randn(2, 7, 4, 5) + 1
    torch.testing.assert_close(layer(features), official(features), atol=1e-5, rtol=0)


@torch.no_grad()
def test_mlp__equals_official():
    import_segment_anything()
    from segment_anything.modeling.common import MLPBlock as OfficialMLPBlock
    from segment_anything.modeling.mask_decoder import MLP as OfficialMLP  # noqa: N811

    for official, ours in ((OfficialMLP(6, 8, 3, 3), MLP(6, 8, 3, depth=3)), (OfficialMLPBlock(6, 8), MLPBlock(6, 8))):
        ours.load_state_dict(randomize(official).state_dict())
        tokens = torch.randn(2, 5, 6)
        torch.testing.assert_close(ours(tokens), official(tokens), atol=1e-6, rtol=0)
