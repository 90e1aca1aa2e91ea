import pytest
import torch
from torch import nn

from mtlsi import kernels
from mtlsi.nn.layers import TaskBatchNorm, TaskConvolution, TaskLayerNorm, TaskLinear, TaskMLP
from mtlsi.nn.layout import resize_maps, side_by_side, to_map, to_positions
from mtlsi.nn.task_subset import for_tasks, take_tasks
from random_weights import draw_weights

TASKS, IN, OUT, SIZE = 3, 6, 4, (5, 7)
SUBSET = [0, 2]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomized(module):
    """``module`` with every weight and statistic drawn again, so that no gain of 1 or offset of 0 hides a fault."""
    return draw_weights(module, std=1.0).train()


def filled(module, **values):
    """A plain torch module of one task with the given weights and statistics."""
    state = module.state_dict() | values
    module.load_state_dict(state)
    return module


def plain_linear(layer, task):
    return filled(nn.Linear(*layer.weight.shape[1:]), weight=layer.weight[task].T, bias=layer.bias[task, 0])


def plain_batch_norm(layer, task):
    channels = slice(task * OUT, (task + 1) * OUT)
    own = {name: value[channels] for name, value in layer.norm.state_dict().items() if value.ndim}
    return filled(nn.BatchNorm2d(OUT), **own)


def plain_convolution(layer, task):
    norm = plain_batch_norm(layer.norm, task)
    if layer.pointwise is None:
        spatial = filled(nn.Conv2d(IN, OUT, 3, padding=1, bias=False), weight=layer.spatial[task])
        return nn.Sequential(spatial, norm, nn.GELU())
    spatial = filled(nn.Conv2d(IN, IN, 3, padding=1, groups=IN, bias=False), weight=layer.spatial[task])
    linear = plain_linear(layer.pointwise, task)
    pointwise = filled(nn.Conv2d(IN, OUT, 1), weight=linear.weight[:, :, None, None], bias=linear.bias)
    return nn.Sequential(spatial, pointwise, norm, nn.GELU())


def per_task(modules, x):
    return torch.stack([module(x[:, i]) for i, module in enumerate(modules)], 1)


def test_task_linear_is_a_linear_layer_per_task():
    layer, x = randomized(TaskLinear(TASKS, IN, OUT)), torch.randn(2, TASKS, 9, IN)
    torch.testing.assert_close(layer(x), per_task([plain_linear(layer, i) for i in range(TASKS)], x))


def test_task_mlp_is_two_linear_layers_and_a_gelu_per_task():
    layer, x = randomized(TaskMLP(TASKS, IN, 10, OUT)), torch.randn(2, TASKS, 9, IN)
    plain = [
        nn.Sequential(plain_linear(layer.expand, i), nn.GELU(), plain_linear(layer.reduce, i)) for i in range(TASKS)
    ]
    torch.testing.assert_close(layer(x), per_task(plain, x))


def test_task_layer_norm_is_a_layer_norm_per_task():
    layer, x = randomized(TaskLayerNorm(TASKS, IN)), 3 + torch.randn(2, TASKS, 9, IN)
    plain = [filled(nn.LayerNorm(IN), weight=layer.weight[i, 0], bias=layer.bias[i, 0]) for i in range(TASKS)]
    torch.testing.assert_close(layer(x), per_task(plain, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_task_batch_norm_is_a_batch_norm_per_task_in_training_and_after(batch):
    layer, x = randomized(TaskBatchNorm(TASKS, OUT)), 2 + torch.randn(batch, TASKS, OUT, *SIZE)
    plain = [plain_batch_norm(layer, i) for i in range(TASKS)]
    torch.testing.assert_close(layer(x), per_task(plain, x), atol=1e-5, rtol=1e-5)
    layer.eval()
    for module in plain:
        module.eval()
    torch.testing.assert_close(layer(x), per_task(plain, x), atol=1e-5, rtol=1e-5)  # with the statistics just taken


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_task_convolution_is_convolution_norm_and_gelu_per_task(dense, training):
    layer = randomized(TaskConvolution(TASKS, IN, OUT, dense=dense)).train(training)
    plain = [plain_convolution(layer, i).train(training) for i in range(TASKS)]
    x = torch.randn(2, TASKS, IN, *SIZE)
    torch.testing.assert_close(layer(x), per_task(plain, x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dense", [True, False])
def test_task_convolution_trains_on_one_image(dense):
    layer = TaskConvolution(TASKS, IN, OUT, dense=dense)
    out = layer(torch.randn(1, TASKS, IN, *SIZE))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_chunks_are_the_channels_cut_and_concat_takes_them_put_together():
    layer, x = randomized(TaskLinear(TASKS, IN, OUT)), torch.randn(2, TASKS, 9, IN)
    torch.testing.assert_close(torch.cat(layer.chunks(x, 2), -1), layer(x))
    torch.testing.assert_close(layer.concat(*x.split([1, 3, 2], -1)), layer(x))
    mlp = randomized(TaskMLP(TASKS, IN, 10, OUT))
    torch.testing.assert_close(mlp(*x.split([4, 2], -1)), mlp(x))


@pytest.mark.parametrize("batch", [1, 2])
def test_every_layer_leaves_positions_tasks_and_channels_in_this_order_in_memory(batch):
    """Else a convolution behind it would copy its input first, or compute in the slower layout.

    Of the forms for CPUs: a machine on which torch's batched products are clearly faster takes those, and copies.
    """
    x = to_map(torch.randn(batch, 35, TASKS, IN).transpose(1, 2), SIZE)
    convolution = TaskConvolution(TASKS, IN, OUT).eval()
    with torch.no_grad(), kernels.use("cpu"):
        for out in (
            convolution(x),
            TaskBatchNorm(TASKS, IN).eval()(x),
            to_map(TaskLinear(TASKS, IN, OUT)(to_positions(x)), SIZE),
            to_map(TaskLayerNorm(TASKS, IN)(to_positions(x)), SIZE),
            to_map(take_tasks(to_positions(x), SUBSET), SIZE),
            take_tasks(x, SUBSET),
            resize_maps(x, (10, 14)),
        ):
            together = side_by_side(out)
            assert together.data_ptr() == out.data_ptr()  # a view
            assert together.stride() == torch.empty_like(together, memory_format=torch.channels_last).stride()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (TaskLinear(TASKS, IN, OUT), (9, IN)),
        (TaskMLP(TASKS, IN, 10, OUT), (9, IN)),
        (TaskLayerNorm(TASKS, IN), (9, IN)),
        (TaskBatchNorm(TASKS, OUT), (OUT, *SIZE)),
        (TaskConvolution(TASKS, IN, OUT), (IN, *SIZE)),
        (TaskConvolution(TASKS, IN, OUT, dense=True), (IN, *SIZE)),
    ],
    ids=["linear", "mlp", "layer_norm", "batch_norm", "separable", "dense"],
)
def test_a_subset_of_the_tasks_gives_their_slice_of_the_whole(layer, shape):
    randomized(layer).eval()
    x = torch.randn(2, TASKS, *shape)
    torch.testing.assert_close(for_tasks(layer, SUBSET)(x[:, SUBSET]), layer(x)[:, SUBSET], atol=1e-5, rtol=1e-5)


def test_positions_run_row_by_row_and_back():
    x = torch.randn(2, TASKS, IN, *SIZE)
    positions = to_positions(x)
    assert torch.equal(positions[1, 2, 3 * SIZE[1] + 4], x[1, 2, :, 3, 4])
    assert torch.equal(to_map(positions, SIZE), x)
    assert positions.data_ptr() == x.data_ptr()  # a view


def test_resizing_samples_a_ramp_at_pixel_centres():
    """Twice the size: the centre of new pixel i lies at (i + 1/2) / 2 - 1/2 of the old grid, and a ramp stays a ramp."""
    ramp = torch.arange(6.0).expand(1, 1, 4, 6)
    out = resize_maps(ramp, (8, 12))
    expected = torch.tensor([(i + 0.5) / 2 - 0.5 for i in range(12)]).clamp(0, 5)
    torch.testing.assert_close(out, expected.expand(1, 1, 8, 12))
    assert resize_maps(ramp, (4, 6)) is ramp
