"""Recordings of a router: the file, the forward passes that it is formed into, and what an import refuses."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.router_outputs import SHARED, gpt_oss, npz
from tests.routing.recordings import (
    import_arrays,
    random_recording,
    recording_block,
    recording_metadata,
    run_recording,
)
from wdmoe_opencompass.errors import TraceError
from wdmoe_opencompass.trace import recording_import
from wdmoe_opencompass.trace.recording import (
    RecordingJournal,
    check_recording,
    expert_loads,
    read_recording,
    summary,
    write_recording,
)
from wdmoe_opencompass.trace.recording_import import import_recording

ARRAYS = (
    *("expert_index", "weights", "probabilities", "sequence", "position", "prompt_length"),
    *("batch", "first_pass", "first_item", "items", "passes"),
)


def equal(a, b):
    pairs = [(getattr(a, name), getattr(b, name)) for name in ARRAYS]
    return a.metadata == b.metadata and all(x is y or (x.dtype == y.dtype and np.array_equal(x, y)) for x, y in pairs)


# -- the file ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "recording",
    [
        random_recording(),
        random_recording(probabilities=False),
        random_recording(weights=False, probabilities=False),
        run_recording(),
    ],
    ids=["full", "no softmax", "ids", "run"],
)
def test_a_recording_reads_back_as_it_was(tmp_path, recording):
    write_recording(tmp_path / "r", recording)
    assert equal(read_recording(tmp_path / "r"), recording)


def test_one_changed_byte_is_noticed(tmp_path):
    write_recording(tmp_path / "r", random_recording())
    content = bytearray((tmp_path / "r").read_bytes())
    content[-5] ^= 1
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(TraceError, match="do not have the SHA-256 that it states"):
        read_recording(tmp_path / "r")


def test_batches_of_a_journal_are_joined_and_a_redone_one_is_there_once(tmp_path):
    def journal():
        return RecordingJournal(tmp_path / "d.routing.part", recording_metadata())

    growing = journal()
    growing.resume(0)
    growing.append(recording_block(0))
    growing.append(recording_block(2, seed=5))  # its answers were lost
    again = journal()
    assert again.resumable(3) == 2
    again.resume(2)
    again.append(recording_block(2, seed=1))
    assert equal(again.seal(tmp_path / "d.routing.safetensors"), run_recording())
    assert equal(read_recording(tmp_path / "d.routing.safetensors"), run_recording())
    assert not again.path.exists()


BROKEN_RULES = {
    "array expert_index must be < 8": lambda a: a["expert_index"].__setitem__((0, 0, 0), 8),
    "array expert_index must be >= 0": lambda a: a["expert_index"].__setitem__((0, 0, 0), -1),
    "name an expert once per token": lambda a: a["expert_index"].__setitem__((4, 1), 3),
    "array weights must be finite": lambda a: a["weights"].__setitem__((0, 0, 0), np.nan),
    "array probabilities must sum to 1": lambda a: a["probabilities"].__setitem__((2, 1), 0.2),
    "array sequence must be < 2": lambda a: a["sequence"].__setitem__(-1, 2),
    "each with ascending positions": lambda a: a["position"].__setitem__(1, 0),
    "sequences must follow each other": lambda a: a["sequence"].__setitem__(0, 1),
    "passes must count the passes": lambda a: a["passes"].__setitem__(0, 2),
    "batch numbers are out of range": lambda a: a["batch"].__setitem__(1, 1),
}


@pytest.mark.parametrize("sentence", BROKEN_RULES)
def test_tokens_that_contradict_each_other_are_refused(sentence):
    arrays = recording_block(0)
    check_recording("x", recording_metadata(), arrays)
    BROKEN_RULES[sentence](arrays)
    with pytest.raises(TraceError, match=sentence):
        check_recording("x", recording_metadata(), arrays)


# -- forward passes ----------------------------------------------------------------------------------------------------
lengths = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=9)


def passes_by_hand(recording, batch_size):
    """-> [(batch, first item, items, phase, tokens)] counted in loops: prefill, then the n-th new token of each."""
    found, sequences = [], len(recording.prompt_length)
    for batch, start in enumerate(range(0, sequences, batch_size)):
        members = range(start, min(start + batch_size, sequences))
        tokens = {s: [t for t in range(len(recording.sequence)) if recording.sequence[t] == s] for s in members}
        prompt = {s: [t for t in tokens[s] if recording.position[t] < recording.prompt_length[s]] for s in members}
        new = {s: tokens[s][len(prompt[s]) :] for s in members}
        where = (batch, start, len(members))
        found.append((*where, "prefill", [t for s in members for t in prompt[s]]))
        for n in range(max((len(new[s]) for s in members), default=0)):
            found.append((*where, "decode", [new[s][n] for s in members if n < len(new[s])]))
    return [found_pass for found_pass in found if found_pass[-1]]


@settings(max_examples=60, deadline=None)
@given(lengths=lengths, batch_size=st.integers(1, 10), seed=st.integers(0, 99))
def test_passes_are_a_prefill_and_then_lockstep_decoding(lengths, batch_size, seed):
    prompt, new = zip(*lengths, strict=True)
    recording = random_recording(seed, prompt, new)
    expected = passes_by_hand(recording, batch_size)
    found = list(recording.router_passes(batch_size))
    assert [router_pass[:4] for router_pass in found] == [counted[:4] for counted in expected]
    for router_pass, (*_, tokens) in zip(found, expected, strict=True):
        assert np.array_equal(router_pass.expert_index, recording.expert_index[tokens])
        assert np.array_equal(router_pass.weights, recording.weights[tokens])
        assert np.array_equal(router_pass.probabilities, recording.probabilities[tokens])


def test_a_run_keeps_its_batches_unless_told_otherwise():
    recording = run_recording()
    own = [(p.batch, p.first_item, p.items, p.phase, len(p.expert_index)) for p in recording.router_passes()]
    assert own == [
        *((batch, 2 * batch, 2, "prefill", 5) for batch in (0,)),
        *((0, 0, 2, "decode", n) for n in (2, 1)),
        *((1, 2, 2, "prefill", 5),),
        *((1, 2, 2, "decode", n) for n in (2, 1)),
    ]
    joined = [(p.batch, p.phase, len(p.expert_index)) for p in recording.router_passes(4)]
    assert joined == [(0, "prefill", 10), (0, "decode", 4), (0, "decode", 2)]


def test_a_recording_that_begins_after_the_prompts_has_no_empty_prefill():
    recording = random_recording(prompt_length=(2, 3), new=(2, 2))
    new = ~recording.is_prompt
    decode_only = replace(
        recording,
        **{name: getattr(recording, name)[new] for name in ("expert_index", "weights", "probabilities")},
        **{name: getattr(recording, name)[new] for name in ("sequence", "position")},
    )
    assert [(p.phase, len(p.expert_index)) for p in decode_only.router_passes()] == [("decode", 2)] * 2


# -- import ------------------------------------------------------------------------------------------------------------


def jsonl(tmp_path, arrays, drop=lambda token, layer: False, name="x.jsonl", header=True):
    lines = (
        [
            dict(prompt_length=arrays["prompt_length"].tolist())
            | {size: int(arrays[size]) for size in ("num_experts", "hidden_size", "ffn_size") if size in arrays}
        ]
        if header
        else []
    )
    for layer in range(arrays["expert_index"].shape[1]):
        for token in range(len(arrays["sequence"])):
            if not drop(token, layer):
                line = dict(
                    sequence=int(arrays["sequence"][token]), position=int(arrays["position"][token]), layer=layer
                )
                lines.append(
                    line
                    | {
                        name: arrays[name][token, layer].tolist()
                        for name in ("expert_index", "weights", "probabilities")
                        if name in arrays
                    }
                )
    (tmp_path / name).write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path / name


def test_both_formats_give_the_same_recording(tmp_path):
    arrays = import_arrays()
    first, second = (import_recording(path, "m", "d") for path in (npz(tmp_path, arrays), jsonl(tmp_path, arrays)))
    assert equal(first, second)
    assert equal(first, replace(random_recording(), metadata=first.metadata))
    assert (first.metadata.router_is_softmax, first.metadata.router_normalises) == (True, True)
    loads = [[int((first.expert_index[:, layer] == e).sum()) for e in range(8)] for layer in range(3)]
    assert expert_loads(first).tolist() == loads
    assert summary(first)["new_tokens"] == 6


def test_tokens_may_come_pass_by_pass(tmp_path):
    arrays = import_arrays()
    order = np.argsort(arrays["position"], kind="stable")  # the first token of every sequence, then the second, ...
    per_token = ("expert_index", "weights", "probabilities", "sequence", "position")
    shuffled = arrays | {name: arrays[name][order] for name in per_token}
    first, second = (import_recording(npz(tmp_path, given), "m", "d") for given in (arrays, shuffled))
    assert equal(first, second)


def test_sizes_may_come_from_the_command_line(tmp_path):
    arrays = import_arrays()
    bare = {name: array for name, array in arrays.items() if array.ndim and name != "probabilities"}
    path = npz(tmp_path, bare)
    with pytest.raises(TraceError, match="num_experts is missing; put it into the file, or give --num-experts"):
        import_recording(path)
    with pytest.raises(TraceError, match="hidden_size is missing"):
        import_recording(path, num_experts=8)
    assert import_recording(path, num_experts=8, hidden_size=32, ffn_size=48).metadata.ffn_size == 48
    with pytest.raises(TraceError, match="hidden_size is 32 there, but --hidden-size says 64"):
        import_recording(npz(tmp_path, arrays), hidden_size=64)


def changed(**changes):
    """-> what turns good arrays into bad ones: an array, a function of the one that was there, or None to drop it."""

    def change(arrays):
        for name, value in changes.items():
            arrays[name] = value(np.array(arrays[name])) if callable(value) else value
            if value is None:
                del arrays[name]
        return arrays

    return change


def put(position, value):
    def change(array):
        array[position] = value
        return array

    return change


REFUSED = {
    "array expert_index is missing": changed(expert_index=None),
    "array prompt_length is missing": changed(prompt_length=None),
    "array weights is missing; with probabilities": changed(weights=None),
    "array 'wieghts' is unknown; did you mean 'weights'": changed(wieghts=np.zeros(3)),
    "array expert_index must be whole numbers .tokens, layers, k., got float64": changed(expert_index=np.float64),
    "array weights must be floating-point numbers": changed(weights=lambda array: array.astype(int)),
    "array position has 13 tokens, another array 14": changed(position=lambda array: array[1:]),
    "array weights has 2 layers, another array 3": changed(weights=lambda array: array[:, 1:]),
    "array weights has 1 k, another array 2": changed(weights=lambda array: array[..., 1:]),
    "array probabilities has 7 experts, num_experts says 8": changed(probabilities=lambda array: array[..., 1:]),
    "num_experts must be one whole number": changed(num_experts=np.array([8, 8])),
    "num_experts must be from 1 to 32768, got 0": changed(num_experts=np.array(0)),
    "hidden_size must be from 1 to": changed(hidden_size=np.array(-4)),
    r"array expert_index must be from 0 to 7 throughout, got 8 at token 5, layer 1 \(1 such numbers\)": changed(
        expert_index=put((5, 1, 0), 8)
    ),
    "array expert_index must be from 0 to 7 throughout, got -1": changed(expert_index=put((0, 0, 1), -1)),
    r"array weights must be finite and >= 0 throughout, got nan at token 2, layer 0 \(2 such": changed(
        weights=put((2, 0), np.nan)
    ),
    "array weights must be finite and >= 0 throughout, got inf": changed(weights=put((2, 0, 0), np.inf)),
    "array weights must be finite and >= 0 throughout, got -0.5": changed(weights=put((2, 0, 0), -0.5)),
    "array probabilities must be finite": changed(probabilities=put((2, 0, 0), np.nan)),
    "array probabilities must sum to 1": changed(probabilities=put((2, 0), 0.5)),
    "must name an expert once per token": changed(expert_index=put((3, 2), 6)),
    "array sequence must be from 0 to 2 throughout, got 3": changed(sequence=put(-1, 3)),
    "array position must be from 0 to 2147483647": changed(position=put(0, -1)),
    r"1 of 14 rows are repeated: position 1 of sequence 0 is there 2 times": changed(position=put(0, 1)),
    r"weights must be > 0 for at least one expert of every token and layer, got only 0 at token 2, layer 1": changed(
        weights=put((2, 1), 0.0)
    ),
    r"got only 0 at token 0, layer 0 \(42 such rows\)": changed(weights=np.zeros_like),
    "positions must ascend within a sequence, got 4, then 3 in sequence 0": changed(position=put([3, 4], [4, 3])),
    "holds no tokens": changed(
        **dict.fromkeys(("expert_index", "weights", "probabilities", "sequence", "position"), lambda array: array[:0])
    ),
    "array sequence must hold numbers, got": changed(sequence=np.array(["a"] * 14)),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_bad_arrays_are_refused_in_a_sentence(tmp_path, sentence):
    path = npz(tmp_path, REFUSED[sentence](import_arrays()))
    with pytest.raises(TraceError, match=sentence) as caught:
        import_recording(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_objects_are_never_unpickled(tmp_path):
    class Owned:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    path = npz(tmp_path, import_arrays() | dict(sequence=np.array([Owned()] * 14, dtype=object)))
    with pytest.raises(TraceError, match="array sequence must hold numbers"):
        import_recording(path)
    assert not (tmp_path / "owned").exists()


def test_rows_of_a_warm_up_are_named_and_counted(tmp_path):
    arrays = import_arrays(prompt_length=(40,), new=(10,))
    for name in ("expert_index", "weights", "probabilities"):
        arrays[name][7:30] = arrays[name][7]
    with pytest.raises(
        TraceError, match="23 of 50 rows are repeated: from position 7 of sequence 0 on, 23 rows have the same routing"
    ):
        import_recording(npz(tmp_path, arrays))
    for name in ("expert_index", "weights", "probabilities"):
        arrays[name][7:30:15] = arrays[name][0]  # no run of them is long enough to be no model's
    import_recording(npz(tmp_path, arrays))


@pytest.mark.parametrize("names", [("expert_index", "weights"), ("expert_index",)])
def test_rows_of_a_warm_up_are_found_in_sequences_of_one_token(tmp_path, names):
    arrays = import_arrays(prompt_length=(1,) * 60, new=(0,) * 60)
    del arrays["probabilities"]
    if "weights" not in names:
        del arrays["weights"]
    import_recording(npz(tmp_path, arrays))
    for name in names:
        arrays[name][20:] = arrays[name][20]
    with pytest.raises(TraceError, match="40 of 60 rows are repeated: from position 0 of sequence 20 on, 40 rows have"):
        import_recording(npz(tmp_path, arrays))


BAD_LINES = {
    "layers disagree about their tokens: layer 0 has the token at position 2 of sequence 0, layer 1 does not": dict(
        drop=lambda token, layer: (token, layer) == (2, 1)
    ),
    "layers disagree about their tokens: layer 2 has the token at position 1 of sequence 0, layer 0": dict(
        drop=lambda token, layer: token == 1 and layer < 2
    ),
    "layers must be numbered 0, 1, 2, ...": dict(drop=lambda token, layer: layer == 1),
    "line 1: key 'sequence' is unknown": dict(header=False),
}


@pytest.mark.parametrize("sentence", BAD_LINES)
def test_layers_that_disagree_are_refused(tmp_path, sentence):
    with pytest.raises(TraceError, match=sentence):
        import_recording(jsonl(tmp_path, import_arrays(), **BAD_LINES[sentence]))


GOOD_LINE = dict(sequence=0, position=0, layer=0, expert_index=[0, 1], weights=[0.6, 0.4])
HEADER = json.dumps(dict(prompt_length=[1], num_experts=2, hidden_size=4, ffn_size=4))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["{", "{}"], "line 1 is not JSON"),
        (["[]"], "line 1 must be an object, got"),
        (["{}"], "line 1 must be an object with prompt_length"),
        ([HEADER], "holds no tokens"),
        ([HEADER, "[" * 100_000], "line 2 is not JSON"),
        ([HEADER, "3"], "line 2 must be an object, got 3"),
        ([HEADER, json.dumps(GOOD_LINE | dict(experts=[1]))], "line 2: key 'experts' is unknown"),
        ([HEADER, "{}"], "line 2: sequence is missing"),
        ([HEADER, json.dumps(GOOD_LINE | dict(expert_index=[0, "a"]))], "expert_index must be numbers"),
        ([HEADER, json.dumps(GOOD_LINE | dict(position=10**30))], "position must be numbers"),
        ([HEADER, json.dumps(GOOD_LINE | dict(weights=[float("nan"), 1]))], "weights must be finite"),
        ([HEADER, json.dumps(GOOD_LINE), json.dumps(GOOD_LINE | dict(position=1, weights=[1.0]))], "weights must be"),
        (
            [HEADER, json.dumps(GOOD_LINE), json.dumps({k: v for k, v in GOOD_LINE.items() if k != "weights"})],
            "key weights is in some lines and missing in others",
        ),
        ([HEADER, json.dumps(GOOD_LINE), json.dumps(GOOD_LINE)], "1 of 2 rows are repeated"),
        ([HEADER, json.dumps(GOOD_LINE | dict(sequence=0.5))], "sequence must be one whole number"),
        ([HEADER, json.dumps(GOOD_LINE | dict(expert_index=[True, False]))], "expert_index must be numbers"),
    ],
)
def test_bad_lines_are_refused_in_a_sentence(tmp_path, lines, sentence):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(TraceError, match=sentence):
        import_recording(path)


def test_files_that_are_none_are_refused_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    with pytest.raises(TraceError, match="not a readable"):
        import_recording(tmp_path / "x.npz")
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        import_recording(tmp_path / "y.npz")
    with pytest.raises(TraceError, match=r"must be a .npz or a .jsonl file"):
        import_recording(tmp_path / "x.csv")
    lying = io.BytesIO()
    np.lib.format.write_array_header_1_0(lying, dict(descr="<i8", fortran_order=False, shape=(1 << 40,)))
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("sequence.npy", lying.getvalue())
    with pytest.raises(TraceError, match="array sequence does not hold the"):
        import_recording(tmp_path / "z.npz")
    monkeypatch.setattr(recording_import, "MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sequence.npy", bytes(1 << 20))
    assert (tmp_path / "b.npz").stat().st_size > 1000
    with pytest.raises(TraceError, match="must hold at most 1000 bytes"):
        import_recording(tmp_path / "b.npz")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_file_is_refused_in_a_sentence_or_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("mutated")
    form = data.draw(st.sampled_from([npz, jsonl]))
    path = form(folder, import_arrays())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    sentence = ""
    try:
        import_recording(path)
    except TraceError as error:
        sentence = str(error)
    assert "\n" not in sentence
    assert len(sentence) < 1500


# -- real recordings ---------------------------------------------------------------------------------------------------


def test_the_loads_of_gpt_oss_are_those_of_plain_counts(tmp_path):
    path, arrays = gpt_oss(tmp_path)
    recording = import_recording(path)
    loads = expert_loads(recording)
    for layer in range(24):
        assert (loads[layer] == np.bincount(arrays["experts"][:, layer].ravel(), minlength=32)).all()
    told = summary(recording)
    assert (told["tokens"], told["prompt_tokens"], told["sequences"]) == (10463, 0, 57)
    assert told["largest_to_mean_load"] == pytest.approx(2.8, abs=0.05)  # as published
    assert told["worst_largest_to_mean_load"] == pytest.approx(3.9, abs=0.05)


@pytest.mark.parametrize(("name", "sizes"), [("qwen", (2048, 768)), ("gptoss", (2880, 2880))])
def test_a_log_of_a_phone_is_read_but_for_prompts_that_its_last_layer_skipped(tmp_path, name, sizes):
    source = SHARED / f"bigmoeonedge_{name}.route.csv"
    if not source.exists():
        pytest.skip(f"{source} is not on this machine")
    lines = [line for line in source.read_text().splitlines() if not line.startswith("#")]
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    tokens: dict = {}
    for row in rows:
        token = tokens.setdefault(
            (int(row["layer"]), int(row["step"])), dict(phase=row["phase"], experts=[], weights=[])
        )
        token["experts"].append(int(row["expert"]))
        token["weights"].append(float(row["weight"]))
    header = dict(
        prompt_length=[min(step for (_, step), token in tokens.items() if token["phase"] == "1")],
        num_experts=128,
        hidden_size=sizes[0],
        ffn_size=sizes[1],
    )

    def written(phases):
        text = [json.dumps(header)]
        for (layer, step), token in tokens.items():
            if token["phase"] in phases:
                line = dict(sequence=0, position=step, layer=layer)
                text.append(json.dumps(line | dict(expert_index=token["experts"], weights=token["weights"])))
        (tmp_path / "x.jsonl").write_text("\n".join(text))
        return tmp_path / "x.jsonl"

    with pytest.raises(TraceError, match="layers disagree about their tokens: layer 0 has the token at position"):
        import_recording(written("01"))
    recording = import_recording(written("1"))
    loads = expert_loads(recording)
    for layer in range(recording.metadata.layers):
        found = [int(row["expert"]) for row in rows if row["phase"] == "1" and int(row["layer"]) == layer]
        assert (loads[layer] == np.bincount(found, minlength=128)).all()
    assert {(p.phase, len(p.expert_index)) for p in recording.router_passes()} == {("decode", 1)}
