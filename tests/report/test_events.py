import json

from wdmoe_opencompass.report.testbed_events import write_events

EVENT = dict(at=1.0, device="b", kind="timeout", reason="late|very\nlate", layer=2, pass_index=0, tokens=5, by="c")


def test_events_of_a_run_become_a_table_and_a_sentence(tmp_path):
    folder = tmp_path / "predictions" / "model-hf"
    folder.mkdir(parents=True)
    events = [EVENT, EVENT | dict(by="base_station"), EVENT | dict(kind="rejoined", tokens=0, by="")]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    rubbish = b"\n".join([b"5", b"[1]", b'{"a": 1}', b"\xff", b"[" * 100_000, b'{"torn'])
    (folder / "arc.testbed_events.jsonl").write_bytes(lines.encode() + rubbish)
    (sentence,) = write_events(tmp_path / "predictions", tmp_path)
    assert sentence.startswith("devices failed 2 times, 10 tokens were taken over")
    table = (tmp_path / "testbed_events.md").read_text()
    assert "| model-hf | arc | b | timeout | 2 | 10 | base_station, c | late/very late |" in table
    assert "| model-hf | arc | b | rejoined | 1 | 0 |  |" in table
    assert len(json.loads((tmp_path / "testbed_events_all.json").read_text())) == 3


def test_run_without_events_has_no_table(tmp_path):
    assert write_events(tmp_path / "predictions", tmp_path) == []
    assert not list(tmp_path.iterdir())
