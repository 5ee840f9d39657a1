# SPDX-License-Identifier: Apache-2.0
"""The training: exact autoencoder, known geometry, losses, resuming, export."""

from pathlib import Path

from click.testing import CliRunner
import cv2
from diffusers import StableDiffusionPipeline
import numpy as np
import pytest
import torch

from drift_ros.diffusion.checkpoint import load_checkpoint
from drift_ros.diffusion.features import DiffusionFeatures
from training import model as models
from training.__main__ import main
from training.finish import export_run, plot_curves
from training.losses import bilinear_weights, kernel_losses
from training.trainer import DEFAULT_CONFIG, load_config, load_stages, Trainer
from training.views import make_scene, PhotoFolder, ViewConfig

TINY = (
    'views.size=64',
    'unet.channels=[32, 32, 48]',
    'unet.groups=8',
    'batch=2',
    'workers=0',
    'kernel_rows=64',
    'denoise_every=2',
    'warmup=5',
    'steps=40',
    'learning_rate=0.003',
)


def smooth_photo(seed: int, size: int = 192) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp('photos')
    for i in range(6):
        folder = root / ('red_ball' if i % 2 else 'Wild Cat')
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f'{i}.png'), smooth_photo(i))
    return PhotoFolder([root])


@pytest.fixture
def trainer(photos, tmp_path):
    return Trainer(load_config(None, TINY), photos, tmp_path / 'run')


def test_encoder_is_the_latent_transform():
    images = torch.rand(2, 3, 40, 56) * 2 - 1
    with torch.no_grad():
        latents = models.build_vae().encode(images).latents
    assert latents.shape == (2, models.LATENT_CHANNELS, 10, 14)
    # independently: cut cells, BT.601 luma, orthonormal DCT by scipy
    from scipy.fft import dctn

    rgb = (images[1].numpy() + 1) / 2
    luma = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    cell = dctn(luma[8:12, 20:24] - 0.5, norm='ortho')
    vector = latents[1, :16, 2, 5].numpy()
    order = sorted(((u, v) for u in range(4) for v in range(4)), key=lambda p: (sum(p), p))
    ratio = vector / np.array([cell[u, v] for u, v in order])
    # the gain depends on the frequency only, and rises with it
    assert np.allclose(ratio[1], ratio[2], rtol=1e-3)
    assert (np.diff(ratio[[0, 1, 3, 6, 15]]) > 0).all()
    assert torch.allclose(latents, models.encode_exact(images), atol=1e-5)


def test_latents_hold_luma_exactly():
    """The transform of the luma is invertible: no detail is lost to the tracker."""
    matrix, _ = models.latent_transform()
    grey = matrix[:16].sum(1).reshape(16, 16)
    assert np.linalg.cond(grey) < 20


def test_tokenizer_knows_every_word():
    tokenizer = models.build_tokenizer(['a photo of', 'wild cat', 'faces easy', 'car side'])
    assert tokenizer.tokenize('a photo of faces easy') == [
        'a</w>',
        'photo</w>',
        'of</w>',
        'faces</w>',
        'easy</w>',
    ]
    assert len(tokenizer.tokenize('zebra')) > 1  # bytes spell unknown words
    assert (
        tokenizer.decode(tokenizer('wild cat').input_ids, skip_special_tokens=True) == 'wild cat'
    )


@pytest.mark.parametrize('seed', range(4))
def test_views_show_what_the_geometry_says(photos, seed):
    """Where a point of a view is visible in view 0, both show the same colour there."""
    config = ViewConfig(size=96, photometric=0.0, objects=(0.0, 0.5, 0.5))
    scene = make_scene(photos, np.random.default_rng(seed), config)
    assert scene.labels.sum(-1) == pytest.approx(1.0)
    for view in (1, 2):
        seen = scene.visible[view]
        assert seen.mean() > 0.2
        small = cv2.resize(scene.images[view], (24, 24), interpolation=cv2.INTER_AREA)
        reference = cv2.blur(scene.images[0], (4, 4))
        x, y = scene.target[view][seen].T
        there = cv2.remap(reference, (x + 0.5)[None], (y + 0.5)[None], cv2.INTER_LINEAR)[0]
        error = np.abs(there.astype(float) - small[seen]).mean(-1)
        wrong = np.abs(np.roll(there, 7, 0).astype(float) - small[seen]).mean(-1)
        assert np.median(error) < 8
        assert np.median(error) < 0.4 * np.median(wrong)


def test_reference_view_maps_to_itself(photos):
    scene = make_scene(photos, np.random.default_rng(1), ViewConfig(size=64))
    assert scene.visible[0].all()
    assert scene.target[0][0, 0] == pytest.approx([1.5, 1.5])
    assert scene.target[0][3, 5] == pytest.approx([21.5, 13.5])
    assert np.abs(scene.target[1] - scene.target[0]).max() > 0.1


def test_same_generator_same_scene(photos):
    first, second = (
        make_scene(photos, np.random.default_rng(5), ViewConfig(size=64)) for _ in range(2)
    )
    assert (first.images == second.images).all()
    assert (first.labels == second.labels).all()


def test_pasted_layers_can_be_made_to_blend_in(tmp_path):
    """Soft edges and harmony lower the contrast at the edges of layers."""
    for i in range(6):
        (tmp_path / 'any').mkdir(exist_ok=True)
        photo = smooth_photo(i) // 4 + (0 if i % 2 else 190)
        cv2.imwrite(str(tmp_path / 'any' / f'{i}.png'), photo)
    photos = PhotoFolder([tmp_path])

    def contrast(**options: float) -> float:
        total = []
        for seed in range(12):
            config = ViewConfig(size=96, objects=(0.0, 1.0), photometric=0.0, **options)
            scene = make_scene(photos, np.random.default_rng(seed), config)
            edge = np.diff(scene.layers[0].astype(int), axis=1) != 0
            steps = np.abs(np.diff(scene.images[0].astype(float), axis=1)).mean(-1)
            total.append(steps[edge].mean())
        return float(np.mean(total))

    hard = contrast()
    assert contrast(soft=2.0) < 0.75 * hard
    assert contrast(harmony=1.0) < 0.9 * hard


def test_a_layer_can_be_cut_from_the_background(photos):
    one = PhotoFolder([photos.paths[0].parents[1]])
    one.paths, one.labels = one.paths * 50, one.labels * 50
    config = ViewConfig(size=64, objects=(0.0, 1.0), alike=1.0)
    read: list[int] = []
    one.read = lambda index: read.append(index) or photos.read(index % 6)
    for seed in range(5):
        make_scene(one, np.random.default_rng(seed), config)
    assert read[::2] == read[1::2] and len(set(read)) > 1


def test_labels_know_their_layer(photos):
    config = ViewConfig(size=64, objects=(0.0, 0.0, 1.0))
    scene = make_scene(photos, np.random.default_rng(2), config)
    assert scene.owner[: config.cells + 4].sum(-1).tolist() == [1.0] * (config.cells + 4)
    on_top = (scene.labels @ scene.owner).argmax(-1)  # views, h, w
    majority = scene.layers.reshape(3, 16, 4, 16, 4).mean((2, 4))
    for layer in range(3):
        pure = majority == layer
        whole = (scene.layers.reshape(3, 16, 4, 16, 4) == layer).all((2, 4))
        assert (on_top[pure & whole] == layer).all()


def test_bilinear_weights():
    index, weight = bilinear_weights(torch.tensor([[1.5, 1.5], [3.5, 1.5]]), 8, 8, 4)
    assert index[0, 0] == 0
    assert weight[0].tolist() == [1, 0, 0, 0]
    assert weight[1].tolist() == [0.5, 0.5, 0, 0]
    assert index[1].tolist()[:2] == [0, 1]


def test_kernel_losses_reward_true_matches():
    n, d = 36, 36
    code = 30 * torch.eye(n).view(1, 1, 1, n, d)
    features = code.expand(1, 2, 1, n, d)
    ys, xs = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing='ij')
    target = (torch.stack([xs, ys], -1).view(1, 1, n, 2) * 4 + 1.5).expand(1, 2, n, 2)
    visible = torch.ones(1, 2, n, dtype=torch.bool)
    labels = torch.nn.functional.one_hot(torch.arange(n) % 3, 3).float().expand(1, 2, n, 3)
    right = kernel_losses(features, features, target, visible, labels, 4)
    moved = torch.cat([features[:, :1].roll(14, 3), features[:, 1:]], 1)
    wrong = kernel_losses(features, moved, target, visible, labels, 4)
    assert right['correspondence'] < 0.01 and right['transport'] < 0.01
    assert right['accuracy'] == 1
    assert wrong['correspondence'] > 10 and wrong['transport'] > 5 and wrong['accuracy'] < 0.2


def test_further_negatives_and_hidden_points_count():
    torch.manual_seed(0)
    scenes, n = 3, 36
    features = torch.randn(scenes, 2, 1, n, 8)
    target = torch.full((scenes, 2, n, 2), 1.5)
    visible = torch.zeros(scenes, 2, n, dtype=torch.bool)
    labels = torch.nn.functional.one_hot(torch.arange(n) % 4, 4).float().expand(scenes, 2, n, 4)
    owner = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]).expand(scenes, 4, 2)
    hidden = kernel_losses(features, features, target, visible, labels, 4, owner=owner)
    assert hidden['correspondence'] == hidden['transport'] == 0
    assert hidden['membership'] > 0.1
    visible = ~visible
    plain = kernel_losses(features, features, target, visible, labels, 4)
    more = kernel_losses(features, features, target, visible, labels, 4, strangers=10)
    assert more['correspondence'] > plain['correspondence'] + 0.1
    assert more['transport'] == plain['transport'] and plain['membership'] == 0
    fewer = kernel_losses(features, features, target, visible, labels, 4, dropout=0.9)
    assert fewer['transport'] > plain['transport']
    assert fewer['correspondence'] == plain['correspondence']


def test_labels_can_be_sought_near_by_only():
    """In a window a point's look-alike far away gets no vote, and far movers do not count."""
    side = 10
    n = side * side
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing='ij')
    code = 30 * torch.nn.functional.one_hot((xs % 5).flatten(), 5).float()  # alike 5 columns on
    features = code.view(1, 1, 1, n, 5).expand(1, 2, 1, n, 5)
    target = torch.stack([xs, ys], -1).float().view(1, 1, n, 2).expand(1, 2, n, 2) * 4 + 1.5
    visible = torch.ones(1, 2, n, dtype=torch.bool)
    labels = torch.nn.functional.one_hot((xs // 5).flatten(), 2).float().expand(1, 2, n, 2)
    everywhere = kernel_losses(features, features, target, visible, labels, 4)
    near = kernel_losses(features, features, target, visible, labels, 4, window=3)
    assert everywhere['transport'] > 0.5 and near['transport'] < 0.01
    moved = (target + 16).clamp(max=side * 4 - 3)
    none = kernel_losses(features, features, moved, visible, labels, 4, window=2)
    assert none['transport'] < near['transport'] + 0.01


def test_partial_pass_gives_the_full_pass_queries(trainer):
    latents = torch.randn(2, models.LATENT_CHANNELS, 16, 16)
    text = torch.randn(2, 12, 64)
    t = torch.tensor([10, 300])
    with torch.no_grad():
        query, key = trainer.capture.queries_keys(latents, t, text)
        prediction = trainer.capture.denoise(latents, t, text)
        assert torch.equal(prediction, trainer.unet(latents, t, text).sample)
    assert torch.equal(query, trainer.capture.query)
    assert torch.equal(query, key)  # tied
    logits = (query[0, 0] @ key[0, 0].T) / query.shape[-1] ** 0.5
    # the start: temperature times cosine (the affine layer norm starts at identity)
    assert logits.diagonal().numpy() == pytest.approx(trainer.config['temperature'], rel=0.02)


def test_loss_falls(trainer):
    before = trainer.losses(trainer.batch(1000), 1000)
    trainer.run(stop=30)
    after = trainer.losses(trainer.batch(1000), 1000)
    for name in ('denoise', 'correspondence', 'transport'):
        assert after[name] < before[name], name
    assert after['correspondence'] < 0.9 * before['correspondence']


def test_resumed_run_equals_an_uninterrupted_one(trainer, photos, tmp_path):
    trainer.run(stop=4)
    other = Trainer(load_config(None, TINY), photos, tmp_path / 'other')
    other.run(stop=2)
    resumed = Trainer(load_config(None, TINY), photos, tmp_path / 'other')
    assert resumed.resume() and resumed.step == 2
    resumed.run(stop=4)
    for one, other in (
        (trainer.network, resumed.network),
        (trainer.average.module, resumed.average.module),
    ):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    assert [r['step'] for r in resumed.history] == [1, 2, 3, 4]


def test_frozen_weights_stay(photos, tmp_path):
    """A stage can teach the rest to denoise on top of a finished kernel."""
    frozen = ('conv_in', 'down_blocks.0.resnets', 'time_embedding')
    weights = ('weights.correspondence=0', 'weights.transport=0', 'denoise_every=1')
    config = load_config(None, (*TINY, *weights, f'frozen=[{", ".join(frozen)}]', 'warmup=1'))
    trainer = Trainer(config, photos, tmp_path / 'run')
    before = {k: v.clone() for k, v in trainer.unet.state_dict().items()}
    trainer.run(stop=3)
    changed = {k for k, v in trainer.unet.state_dict().items() if not torch.equal(v, before[k])}
    assert not any(name.startswith(frozen) for name in changed)
    assert any(name.startswith('up_blocks') for name in changed)
    assert 'correspondence' not in trainer.history[-1]


def test_export_loads_with_stock_classes(trainer, tmp_path):
    trainer.run(stop=3)
    folder = tmp_path / 'model'
    export_run(trainer, models.build_vae(), folder)
    assert all(p.dtype == torch.float32 for p in trainer.parameters)
    unet, _ = trainer.averaged()
    checkpoint = load_checkpoint(folder)
    for name, value in unet.state_dict().items():
        assert torch.allclose(checkpoint.unet.state_dict()[name], value, atol=2e-3), name
    features = DiffusionFeatures(checkpoint, layers=(trainer.layer,), resolution=64)
    layer = features.extract(smooth_photo(3, 64)).layers[0]
    assert layer.query.shape[:3] == (1, 16, 16)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        'a photo of wild cat', height=64, width=64, num_inference_steps=2, output_type='np'
    ).images[0]
    assert image.shape == (64, 64, 3) and np.isfinite(image).all()


def test_export_of_an_untied_start(photos, tmp_path):
    config = load_config(None, (*TINY, 'tied=false'))
    trainer = Trainer(config, photos, tmp_path)
    trainer.run(stop=2)
    attn = trainer.unet.get_submodule(trainer.layer)
    assert not torch.equal(attn.to_q.weight, attn.to_k.weight)


def test_start_from_another_network(trainer, photos, tmp_path):
    trainer.run(stop=2)
    other = Trainer(
        load_config(
            None,
            (
                *TINY,
                'unet.stem=5',
                'layer=up_blocks.2.attentions.0.transformer_blocks.0.attn1',
                'unet.early=false',
            ),
        ),
        photos,
        tmp_path / 'other',
    )
    fresh = other.start_from(trainer.out / 'state.pt')
    assert not fresh
    old, new = trainer.averaged()[0].state_dict(), other.unet.state_dict()
    assert torch.equal(new['conv_in.weight'][..., 1:-1, 1:-1], old['conv_in.weight'])
    assert torch.equal(new['conv_out.weight'], old['conv_out.weight'])
    other.save()
    third = Trainer(load_config(None, TINY), photos, tmp_path / 'third')
    fresh = third.start_from(tmp_path / 'other' / 'state.pt')
    assert {'.'.join(name.split('.')[:3]) for name in fresh} == {
        'conv_in.weight',
        'down_blocks.0.attentions',
    }
    assert third.unet.down_blocks[0].attentions[0].proj_out.weight.abs().max() == 0


def test_start_from_an_exported_folder(trainer, photos, tmp_path):
    trainer.run(stop=2)
    export_run(trainer, models.build_vae(), tmp_path / 'model')
    other = Trainer(load_config(None, TINY), photos, tmp_path / 'other')
    assert not other.start_from(tmp_path / 'model')
    averaged, _ = trainer.averaged()
    for name, value in averaged.state_dict().items():
        assert torch.allclose(other.unet.state_dict()[name], value, rtol=2e-3, atol=1e-4), name


def test_half_precision_gives_nearly_the_same_losses(trainer, photos, tmp_path):
    half = Trainer(load_config(None, (*TINY, 'precision=bfloat16')), photos, tmp_path / 'half')
    expected = trainer.train_step(trainer.batch(0))
    found = half.train_step(half.batch(0))
    for name in ('denoise', 'correspondence', 'transport'):
        assert found[name] == pytest.approx(expected[name], rel=0.03), name
    assert all(p.dtype == torch.float32 for p in half.parameters)


def test_unknown_configuration_key_is_named():
    with pytest.raises(ValueError, match='bacth'):
        load_config(None, ('bacth=3',))


def test_published_recipe_is_a_chain():
    stages = load_stages(DEFAULT_CONFIG.with_name('published.yaml'), ('batch=2',))
    first = ['late', 'early', 'kernel', 'denoise', 'wider', 'settle']
    names = [*first, 'wider-again', 'settle-again']
    assert [name for name, _ in stages] == names
    assert [config['unet']['early'] for _, config in stages] == [False] + 7 * [True]
    assert all(config['batch'] == 2 for _, config in stages)
    with pytest.raises(ValueError, match='8 stages'):
        load_config(DEFAULT_CONFIG.with_name('published.yaml'))


def test_one_command_runs_a_chain_and_continues_it(photos, tmp_path):
    """The second stage starts from the first one's weights; a second call takes no step."""
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text('stages: [{name: first, steps: 2}, {name: second, steps: 1}]')
    command = [
        '--photos',
        str(photos.paths[0].parents[1]),
        '--out',
        str(tmp_path / 'run'),
        '--config',
        str(recipe),
        '--decoder-steps',
        '1',
        '--threads',
        '1',
    ]
    for item in TINY:
        if not item.startswith('steps'):
            command += ['--set', item]
    command += ['--set', 'learning_rate=0.0']
    for _ in range(2):
        done = CliRunner().invoke(main, command, catch_exceptions=False)
        assert done.exit_code == 0 and 'exported step 1' in done.output
    first, second = (
        torch.load(tmp_path / 'run' / name / 'state.pt', weights_only=True)
        for name in ('first', 'second')
    )
    assert (first['step'], second['step']) == (2, 1)
    assert all(torch.equal(value, second['unet'][name]) for name, value in first['unet'].items())
    assert load_checkpoint(tmp_path / 'run' / 'model').unet is not None


def test_empty_photo_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(Path(tmp_path).name)):
        PhotoFolder([tmp_path])


def test_curves_are_drawn(tmp_path):
    history = [{'step': float(i), 'denoise': 1 / i, 'accuracy': 0.5} for i in range(1, 30)]
    history[10]['dev_jf'] = 0.6
    plot_curves(history, tmp_path / 'curves.png')
    assert cv2.imread(str(tmp_path / 'curves.png')) is not None
