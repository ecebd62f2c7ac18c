"""Constants of `wdmoe calibrate` against plain loops over a tiny model."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.builders.trace_blocks import block as trace_block
from tests.builders.trace_blocks import metadata
from tests.routing.families import attached, find_moe_layers, tiny_model
from wdmoe_opencompass.cli import app
from wdmoe_opencompass.errors import ModelError, PolicyError, TraceError
from wdmoe_opencompass.routing import calibrate as calibrating
from wdmoe_opencompass.routing.calibrate import calibrate, calibrate_from_traces
from wdmoe_opencompass.selection.calibration import Calibration, read_calibration
from wdmoe_opencompass.trace.format import join

CHUNKS = [torch.randint(3, 97, (1, 40), generator=torch.Generator().manual_seed(n)) for n in range(2)]


def experts_called(model):
    """-> per layer, what the unpatched model's experts are given: hidden, index, weights."""
    layers, seen = find_moe_layers(model), []
    handles = [layer.experts.register_forward_pre_hook(lambda _, args: seen.append(args)) for layer in layers]
    with torch.no_grad():
        for chunk in CHUNKS:
            model(input_ids=chunk)
    for handle in handles:
        handle.remove()
    return [[torch.cat(parts) for parts in zip(*seen[number :: len(layers)])] for number in range(len(layers))]


@pytest.mark.parametrize(("family", "top_k"), [("mixtral", 2), ("olmoe", 3), ("deepseek_v3", 2), ("granitemoe", 2)])
def test_everything_measured_equals_plain_loops(family, top_k, monkeypatch):
    monkeypatch.setattr(calibrating, "DIFFERENCE_TOKENS", 5)
    model = tiny_model(family, top_k=top_k)
    measured = calibrate(model, CHUNKS, "tiny")
    layers = find_moe_layers(model)
    for number, (hidden_states, index, weights) in enumerate(experts_called(model)):
        assert torch.equal(measured.top_k_index[number], index)
        assert torch.allclose(measured.top_k_weights[number], weights)
        ratios = [sorted(row, reverse=True)[1] / max(row) for row in weights.tolist()]
        assert measured.ratio_median[number].item() == pytest.approx(np.sort(ratios)[(len(ratios) - 1) // 2], rel=1e-5)
        experts, distances = layers[number].experts, np.zeros((8, 9))
        with torch.no_grad():
            for token in hidden_states[:5]:
                answers = [experts(token[None], torch.tensor([[e]]), torch.ones(1, 1))[0] for e in range(8)]
                for i in range(8):
                    distances[i] += [(answers[i] - other).norm().item() for other in answers] + [
                        answers[i].norm().item()
                    ]
        distances /= 5
        assert measured.output_difference[number].numpy() == pytest.approx(distances, rel=1e-3, abs=1e-3)
    fewer = measured.fewer_experts_difference
    assert (fewer > 0).all()
    assert (fewer[:, :-1] > fewer[:, 1:]).all()  # more experts are closer to all of them
    assert (measured.sensitivity > 0).all()


def test_sensitivity_is_the_squared_gradient():
    """By finite differences of the loss in the last layer's output."""
    model = tiny_model("mixtral")
    layer = find_moe_layers(model)[-1]
    chunk = CHUNKS[0][:, :3]

    def loss(nudge):
        handle = layer.experts.register_forward_hook(lambda module, args, answer: answer + nudge.float())
        with torch.no_grad():
            logits = model(input_ids=chunk).logits[0, :-1].double()
        handle.remove()
        return torch.nn.functional.cross_entropy(logits, chunk[0, 1:], reduction="sum").item()

    gradient = torch.zeros(3, 32, dtype=torch.float64)
    for entry in range(96):
        step = torch.zeros(96, dtype=torch.float64)
        step[entry] = 0.02
        gradient.view(-1)[entry] = (loss(step.view(3, 32)) - loss(-step.view(3, 32))) / 0.04
    measured = calibrate(model, [chunk], "tiny").sensitivity[-1].item()
    assert measured == pytest.approx(gradient.square().sum().item() / 3, rel=0.02)


def test_calibrating_leaves_the_model_as_it_was():
    model = tiny_model("mixtral")
    ids = CHUNKS[0]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
    calibrate(model, CHUNKS, "tiny")
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain)


def test_a_trace_gives_the_median_ratio_to_a_bin():
    model = tiny_model("mixtral")
    with attached(model, "top_k") as attachment, torch.no_grad():
        for chunk in CHUNKS:
            model(input_ids=chunk)
        block = attachment.recorder.finish_batch(0, 2)
    assert (block["ratio_counts"].sum(axis=2) == 80).all()
    trace = join(metadata(), [trace_block(0)])
    trace.arrays["ratio_counts"] = block["ratio_counts"]
    from_trace = calibrate_from_traces([trace]).ratio_median
    assert from_trace.tolist() == pytest.approx(calibrate(model, CHUNKS, "tiny").ratio_median.tolist(), abs=0.02)


def test_padding_has_no_ratio():
    model = tiny_model("mixtral")
    ids = torch.cat([CHUNKS[0], CHUNKS[1]])
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    with attached(model, "wlr") as attachment, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
        assert (attachment.recorder.finish_batch(0, 2)["ratio_counts"].sum(axis=2) == 50).all()


def test_a_trace_without_tokens_is_refused():
    trace = join(metadata(), [trace_block(0)])
    trace.arrays["ratio_counts"] = np.zeros_like(trace.arrays["ratio_counts"])
    with pytest.raises(TraceError, match="holds no token with two experts"):
        calibrate_from_traces([trace])


def test_a_calibration_survives_its_file(tmp_path):
    measured = calibrate(tiny_model("mixtral"), CHUNKS, "tiny")
    path = tmp_path / "a.calibration.safetensors"
    measured.write(path)
    read = read_calibration(str(path))
    assert read.content_hash == measured.content_hash
    assert read.model == "tiny"
    read.check_fits(3, 8, 2)
    for sizes, sentence in (((4, 8, 2), "3 layers, the model has 4"), ((3, 4, 2), "8 experts, the model has 4")):
        with pytest.raises(PolicyError, match=sentence):
            read.check_fits(*sizes)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x02\0\0\0\0\0\0\0{}"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.calibration.safetensors"
    path.write_bytes(content)
    with pytest.raises(PolicyError, match="not a file that `wdmoe calibrate` wrote"):
        read_calibration(str(path))
    with pytest.raises(PolicyError, match="no such file"):
        read_calibration(str(tmp_path / "b.calibration.safetensors"))


def test_what_was_not_measured_is_named():
    with pytest.raises(PolicyError, match="holds no sensitivity; make one with: wdmoe calibrate"):
        Calibration().need("sensitivity")


def test_one_expert_per_token_has_nothing_to_calibrate():
    with pytest.raises(ModelError, match="nothing to drop"):
        calibrate(tiny_model("mixtral", top_k=1), CHUNKS, "tiny")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["quickstart/model", "--out", "a.json"], "--out must end in .calibration.safetensors"),
        (["quickstart/model", "--out", "a.calibration.safetensors"], "give one model and --text FILE"),
        (
            ["quickstart/model", "--text", "no.txt", "--out", "a.calibration.safetensors"],
            "no.txt: cannot be read",
        ),
        (
            ["quickstart/model", "--text", "setup.cfg", "--tokens", "99999", "--out", "a.calibration.safetensors"],
            "setup.cfg: must hold at least 99999 tokens",
        ),
        (["no/model", "--text", "README.md", "--out", "a.calibration.safetensors"], "no/model: cannot be loaded"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, sentence, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answer = CliRunner().invoke(app, ["calibrate", *arguments])
    assert sentence in str(answer.exception)
    assert "\n" not in str(answer.exception)
