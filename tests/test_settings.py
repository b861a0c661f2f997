"""Settings of the service: what a file may say, what is refused and where, and what a reload takes over."""

from __future__ import annotations

import re
import tomllib
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import arenite
from arenite.adapters.changes import LIVE, Change, applied, changes
from arenite.adapters.rules import Bytes, Duration, Place, Rule, Secret, Whole, stays_here
from arenite.adapters.settings import CEILINGS, Limits, Settings, Zeromq, load, read, value_at
from arenite.adapters.summary import asked_and_granted
from arenite.adapters.tables import as_text, hints_of, rule_of
from arenite.adapters.units import exact_size, format_duration, parse_duration
from arenite.runtime.arena import Need, Plan, Snapshot
from arenite.runtime.config import ModelOptions
from arenite.runtime.errors import ConfigError
from arenite.runtime.session import MAX_SESSIONS
from arenite.runtime.stats import Status

FOLDER = Path("/etc/arenite")
EXAMPLE = Path(arenite.__file__).parent / "examples" / "arenite.toml"
SECTIONS = {each.name: type(getattr(Settings(), each.name)) for each in fields(Settings) if each.name != "model"}
KEYS = [(section, each) for section, kind in SECTIONS.items() for each in fields(kind)]
KEYS += [("model", each) for each in fields(ModelOptions)]


def settings(text: str) -> Settings:
    return read(tomllib.loads(text), FOLDER)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(text)
    assert caught.value.exit_code == 78
    assert "\n" not in str(caught.value)
    return str(caught.value)


def model(*lines: str) -> str:
    return "\n".join(["[[model]]", 'path = "a.gguf"', *lines])


# ---- what is refused, where, and what is said ----

REFUSED = [  # file, the key's path, a part of what is allowed
    # names
    ("limit = 3", "limit", "did you mean limits? known are arena, engine, limits, log, model"),
    ("[mqtt]", "mqtt", "is unknown"),
    ("[http]", "http", "is unknown"),
    ('[zeromq]\nheartbeet = "2s"', "zeromq.heartbeet", "did you mean heartbeat?"),
    ("[zeromq]\nhwm-send = 5", "zeromq.'hwm-send'", "did you mean hwm_send?"),
    ("[log]\nzzz = 1", "log.zzz", "known are level, prompts"),
    (model("contxt = 4"), "model[0].contxt", "did you mean context?"),
    (model() + "\n" + model("stream = 4", 'name = "b"'), "model[1].stream", "did you mean streams?"),
    # shapes
    ("limits = 3", "limits", "[limits]"),
    ("[[limits]]", "limits", "[limits]"),
    ("[model]\npath = 'a'", "model", "[[model]]"),
    ("model = [1]", "model[0]", "[[model]]"),
    ('[zeromq]\nlisten = "ipc:///a"', "zeromq.listen", "a list"),
    (model('gpus = "CUDA0"'), "model[0].gpus", "a list"),
    ("[[model]]\nname = 'a'", "model[0].path", "missing"),
    # types
    ('[log]\nprompts = "no"', "log.prompts", "true or false"),
    ("[log]\nlevel = 3", "log.level", "one of debug, info, warning, error"),
    ('[log]\nlevel = "warn"', "log.level", "did you mean warning?"),
    ("[engine]\nlimit = 1.5", "engine.limit", "a whole number from 1 to 65536"),
    ("[engine]\nlimit = true", "engine.limit", "a whole number"),
    ("[service]\nname = 5", "service.name", "letters"),
    (model("streams = true"), "model[0].streams", "a whole number"),
    (model("deterministic = 1"), "model[0].deterministic", "true or false"),
    (model('gpu_layers = "lots"'), "model[0].gpu_layers", "a whole number or one of auto, all"),
    (model("gpus = [1]"), "model[0].gpus[0]", "a text"),
    (model('gpus = ["CUDA0"]', "gpu_split = ['1']"), "model[0].gpu_split[0]", "a number"),
    # units
    ("[sessions]\nttl = 5", "sessions.ttl", "250ms, 5s, 10min or 2h"),
    ('[sessions]\nttl = "5"', "sessions.ttl", "250ms, 5s, 10min or 2h"),
    ('[sessions]\nttl = "5m"', "sessions.ttl", "10min"),
    ("[engine]\nhang_step = 1979-05-27", "engine.hang_step", "10min"),
    ('[engine]\njournal = "5s"', "engine.journal", "from 64KiB to 64GiB"),
    ('[engine]\njournal = "80%"', "engine.journal", "from 64KiB"),
    ('[engine]\njournal = "auto"', "engine.journal", "from 64KiB"),
    ('[arena]\nsize = "much"', "arena.size", "600MiB"),
    ("[arena]\nsize = 600", "arena.size", "at least 1MiB"),
    ("[arena]\ngpu = 1.5", "arena.gpu", "80%"),
    (model('host_cache = "5s"'), "model[0].host_cache", "600MiB"),
    (model('host_cache = "auto"'), "model[0].host_cache", "0 for none"),
    # ranges
    ("[engine]\nlimit = 0", "engine.limit", "from 1 to 65536"),
    ('[engine]\nhang_step = "2h"', "engine.hang_step", "from 100ms to 10min"),
    ('[limits]\npayload = "1GiB"', "limits.payload", "from 1KiB to 16MiB"),
    ('[limits]\ncredit = "1B"', "limits.credit", "or 0 for no limit"),
    ('[service]\nname = "my box"', "service.name", "letters"),
    ('[service]\nboot = "a/b"', "service.boot", "letters"),
    (model("context = 3"), "model[0].context", "from 16 to"),
    (model("step_ms = nan"), "model[0].step_ms", "from 1 to 10000"),
    (model('name = "a b"'), "model[0].name", "letters"),
    ("[[model]]\npath = 'my model.gguf'", "model[0].name", "letters"),
    ("[[model]]\npath = ''", "model[0].path", "a GGUF file"),
    ("[[model]]\npath = '~/a.gguf'", "model[0].path", "not expanded"),
    # endpoints, files, secrets
    ('[zeromq]\nlisten = ["ipc:///a", "http://b"]', "zeromq.listen[1]", "tcp://ADDRESS:PORT"),
    ("[zeromq]\nlisten = [5]", "zeromq.listen[0]", "tcp://ADDRESS:PORT"),
    ('[zeromq]\nlisten = ["ipc://a"]', "zeromq.listen[0]", "absolute path"),
    ('[zeromq]\nlisten = ["ipc://@a"]', "zeromq.listen[0]", "absolute path"),
    (f'[zeromq]\nlisten = ["ipc:///{"a" * 107}"]', "zeromq.listen[0]", "at most 107 bytes"),
    ('[zeromq]\nlisten = ["tcp://127.0.0.1"]', "zeromq.listen[0]", "a port"),
    ('[zeromq]\nlisten = ["tcp://127.0.0.1:65536"]', "zeromq.listen[0]", "to 65535"),
    ('[zeromq]\nlisten = ["tcp://127.0.0.256:1"]', "zeromq.listen[0]", "no address"),
    ('[zeromq]\nlisten = ["tcp://localhost:5560"]', "zeromq.listen[0]", "127.0.0.1"),
    ("[zeromq]\nmode = 0o660", "zeromq.mode", '"0660"'),
    ('[zeromq]\nmode = "0444"', "zeromq.mode", "owner"),
    ('[zeromq]\ncurve_secret = "file:"', "zeromq.curve_secret", "file:PATH"),
    ('[zeromq]\ncurve_secret = "credential:../x"', "zeromq.curve_secret", "credential:NAME"),
    ("[zeromq]\nallow = 5", "zeromq.allow", "a path"),
    ('[sessions]\nfolder = "sessions"', "sessions.folder", "an absolute path"),
    ('[sessions]\nfolder = "~/sessions"', "sessions.folder", "not expanded"),
    # what contradicts each other
    (model() + "\n" + model(), "model[1].name", "as model[0]'s"),
    (model("batch = 4"), "model[0].batch", "streams 8"),
    (model("flash_attention = false", 'kv_type = "q8_0"'), "model[0].kv_type", "flash_attention"),
    (model("gpu_split = [1, 2]"), "model[0].gpu_split", "one number for each of gpus"),
    (model("require_gpu = true", "gpu_layers = 0"), "model[0].require_gpu", "contradicts"),
    ('[zeromq]\nlisten = ["ipc:///a", "ipc:///a"]', "zeromq.listen[1]", "as zeromq.listen[0]"),
    ('[zeromq]\nlisten = ["ipc:///a"]\nstatus = "ipc:///a"', "zeromq.status", "as zeromq.listen[0]"),
    ('[zeromq]\nlisten = ["ipc:///a", "tcp://*:5560"]', "zeromq.listen[1]", "zeromq.curve_secret"),
    ('[zeromq]\nlisten = ["tcp://[::]:5560"]\ncurve_secret = "file:k"', "zeromq.listen[0]", "zeromq.allow"),
    ('[zeromq]\nstatus = "tcp://eth0:5561"', "zeromq.status", "zeromq.curve_secret"),
    ('[zeromq]\nallow = "clients"', "zeromq.allow", "zeromq.curve_secret"),
    ('[engine]\njournal = "256KiB"', "engine.journal", "327,680 bytes"),
]


@pytest.mark.parametrize(("text", "key", "allowed"), REFUSED)
def test_a_bad_value_is_refused_by_its_path_with_what_is_allowed(text: str, key: str, allowed: str) -> None:
    said = refusal(text)
    assert re.match(re.escape(key) + "[: ]", said), said
    assert allowed in said


PAIRS = [  # key, value, key, value: the first is more than the second allows
    ("limits.queued", "70", "engine.limit", "60"),
    ("limits.queued_per_client", "9", "limits.queued", "8"),
    ("limits.streams_per_client", "5", "engine.limit", "4"),
    ("limits.chunk", '"512B"', "limits.credit", '"511B"'),
    ("limits.chunk", '"8KiB"', "limits.outbound", '"4KiB"'),
    ("limits.transcript", '"1MiB"', "limits.replay", '"512KiB"'),
    ("limits.kept_done", '"2min"', "limits.kept", '"1min"'),
    ("limits.payload", '"2MiB"', "zeromq.max_message", '"1MiB"'),
    ("limits.chunk", '"2KiB"', "zeromq.max_message", '"1KiB"'),
    ("zeromq.heartbeat", '"10s"', "zeromq.heartbeat_timeout", '"5s"'),
    ("engine.backoff_first", '"2s"', "engine.backoff_last", '"1s"'),
]
ROOM = 'limits.payload = "1KiB"\nlimits.credit = 0\nlimits.queued = 1\nlimits.queued_per_client = 1\n'


def test_every_ceiling_has_its_case() -> None:
    assert [(low, high) for low, _, high, _ in PAIRS] == [(low, high) for low, high, _ in CEILINGS]


@pytest.mark.parametrize(("low", "value", "high", "bound"), PAIRS)
def test_limits_that_contradict_each_other_are_refused_with_both(low: str, value: str, high: str, bound: str) -> None:
    others = [line for line in ROOM.splitlines() if line.split()[0] not in {low, high}]
    said = refusal("\n".join([*others, f"{low} = {value}", f"{high} = {bound}"]))
    assert said.startswith(f"{low} is {value.strip(chr(34))}, more than {high} with {bound.strip(chr(34))}: ")


def test_credit_without_a_limit_holds_every_chunk() -> None:
    assert settings("[limits]\ncredit = 0").limits.credit == 0


def test_what_may_be_a_secret_is_never_shown() -> None:
    for value in ('"rq:rM>}U?@Lns47E1%kR.o@n"', '["hunter2"]', "12345678"):
        said = refusal(f"[zeromq]\ncurve_secret = {value}")
        assert said.startswith("zeromq.curve_secret: a secret never stands in this file")
        assert "hunter2" not in said
        assert "rM" not in said
        assert "1234" not in said


@pytest.mark.parametrize("raw", [b"[arena", b"\xff\xfe", b"a = " + b"[" * 5000, b"[log]\nlevel='info'\nlevel='info'",
                                 b"a = " + b"9" * 5000, b"#" * (1 << 21)])
def test_a_file_that_is_no_toml_is_a_bad_configuration(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "arenite.toml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load(path)


def test_a_file_that_is_not_there_is_one_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "arenite.toml")


# ---- what is read ----

def test_paths_start_from_the_folder_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "arenite.toml"
    path.write_text(
        '[zeromq]\nlisten = ["tcp://*:5560"]\ncurve_secret = "file:key"\nallow = "clients"\n'
        '[[model]]\npath = "models/a.gguf"\n[[model]]\npath = "/srv/b.gguf"\n[[model]]\npath = "null:"\n'
        '[sessions]\nfolder = "/var/lib/arenite"'
    )
    found = load(path)
    assert [each.path for each in found.model] == [str(tmp_path / "models/a.gguf"), "/srv/b.gguf", "null:"]
    assert [each.name for each in found.model] == ["a", "b", "null"]
    assert found.zeromq.curve_secret == Secret("file", str(tmp_path / "key"))
    assert (found.zeromq.allow, found.sessions.folder) == (tmp_path / "clients", Path("/var/lib/arenite"))


def test_values_are_seconds_bytes_and_numbers() -> None:
    found = settings(
        '[arena]\nsize = "80%"\ngpu = 2147483648\n[sessions]\nttl = "1.5h"\n[limits]\npayload = "32KiB"\n'
        '[zeromq]\nmode = "600"\nstatus = ""\nlisten = []'
    )
    assert (found.arena.size, found.arena.gpu) == ("80%", "2147483648")
    assert (found.sessions.ttl, found.limits.payload) == (5400.0, 32 << 10)
    assert (found.zeromq.mode, found.zeromq.status, found.zeromq.listen) == (0o600, None, ())


@pytest.mark.parametrize(("endpoint", "here"), [
    ("ipc:///run/a", True), ("tcp://127.0.0.1:1", True), ("tcp://127.8.0.1:1", True), ("tcp://[::1]:1", True),
    ("tcp://*:1", False), ("tcp://0.0.0.0:1", False), ("tcp://[::]:1", False), ("tcp://eth0:1", False),
    ("tcp://192.168.1.2:1", False),
])
def test_only_loopback_stays_on_this_machine(endpoint: str, *, here: bool) -> None:
    assert stays_here(endpoint) is here
    keys = "" if here else '\ncurve_secret = "credential:curve-secret"\nallow = "clients"'
    assert settings(f'[zeromq]\nlisten = ["{endpoint}"]{keys}').zeromq.listen == (endpoint,)


def test_a_node_has_a_name_that_every_transport_can_carry() -> None:
    assert settings('[service]\nname = "box-1"').service.node == "box-1"
    assert re.fullmatch("[A-Za-z0-9_.-]{1,64}", Settings().service.node)


def test_a_secret_is_read_from_its_file_or_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_text("  word\n")
    path.chmod(0o600)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert Secret("file", str(path)).read() == "word"
    with pytest.raises(ConfigError, match="k: there are no systemd credentials here"):
        Secret("credential", "key", "k").read()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert Secret("credential", "key").read() == "word"
    path.chmod(0o604)
    with pytest.raises(ConfigError, match=r"k: everybody may read .*chmod 600"):
        Secret("file", str(path), "k").read()
    for raw, says in ((b" \n", "empty"), (b"x" * 70_000, "too long"), (b"\xff", "not a text")):
        path.write_bytes(raw)
        with pytest.raises(ConfigError, match=f"k: .* {says}"):
            Secret("credential", "key", "k").read()
    path.unlink()
    with pytest.raises(ConfigError, match=r"k: .* No such file"):
        Secret("credential", "key", "k").read()


# ---- durations and sizes ----

@pytest.mark.parametrize(("text", "seconds"), [
    ("250ms", 0.25), ("5s", 5.0), ("10min", 600.0), ("2h", 7200.0), ("1.5 s", 1.5), ("0s", 0.0), ("9ms", 0.009),
])
def test_durations_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", 5, 5.0, True, None, "-1s", "1e3s", "5S", "5m", "5sec", "1h30min", "nan s",
                                  "٣s", "s", "99999999999s"])
def test_any_other_duration_is_refused_with_the_units(text: object) -> None:
    with pytest.raises(ConfigError, match="250ms, 5s, 10min or 2h"):
        parse_duration(text)


@given(st.integers(0, 10**12))
def test_a_duration_reads_back_to_the_millisecond(count: int) -> None:
    text = format_duration(count / 1000)
    if len(re.sub("[^0-9]", "", text)) <= 9:
        assert parse_duration(text) == count / 1000


@given(st.text(max_size=12))
def test_no_text_but_a_duration_is_taken(text: str) -> None:
    try:
        assert 0 <= parse_duration(text) < 1e13
    except ConfigError as error:
        assert "10min" in str(error)  # noqa: PT017 - either is right


@given(st.integers(1, 1 << 44))
def test_a_size_reads_back_exactly(size: int) -> None:
    assert Bytes("1B", "64TiB").read(exact_size(size), Place("k", FOLDER)) == size


def test_bounds_of_durations_hold_on_both_ends() -> None:
    rule = Duration("1s", "2s")
    assert [rule.read(text, Place("k", FOLDER)) for text in ("1s", "2s")] == [1.0, 2.0]
    for text in ("999ms", "2001ms"):
        with pytest.raises(ConfigError, match=f"k is '{text}': give a duration from 1s to 2s"):
            rule.read(text, Place("k", FOLDER))


# ---- the example file ----

def example() -> dict[str, Any]:
    """Read the example with every commented key taken in."""
    return tomllib.loads(re.sub(r"(?m)^#(?=[a-z\[])", "", EXAMPLE.read_text(encoding="utf-8")))


def test_the_example_as_it_stands_says_nothing_but_defaults() -> None:
    assert load(EXAMPLE) == Settings()


def test_each_key_of_the_example_has_its_default() -> None:
    found = read(example(), FOLDER)
    assert found == Settings(model=(ModelOptions(str(FOLDER / "assistant.gguf")),))


@pytest.mark.parametrize(("section", "key"), KEYS, ids=lambda each: each if isinstance(each, str) else each.name)
def test_every_key_stands_in_the_example_under_a_comment(section: str, key: Any) -> None:
    table = example()[section]
    assert key.name in (table[0] if section == "model" else table)
    assert key.default is not MISSING or (section, key.name) == ("model", "path")


def test_the_example_explains_in_short_lines() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert all(len(line) <= 120 for line in lines)
    assert all(re.match(r"(# |#$|#[a-z_]+ = |\[[a-z]+\]$|#\[\[model\]\]$|$)", line) for line in lines)


# ---- the dataclasses follow their own rules ----

@pytest.mark.parametrize(("section", "key"), KEYS, ids=lambda each: each if isinstance(each, str) else each.name)
def test_a_default_is_what_its_own_rule_would_read(section: str, key: Any) -> None:
    hint = hints_of(ModelOptions if section == "model" else SECTIONS[section])[key.name]
    rule = rule_of(hint)
    assert rule is None or isinstance(rule, Rule)
    if rule is not None and not isinstance(key.default, tuple):
        written = key.default if isinstance(rule, Whole) else rule.show(key.default)
        assert rule.read(written, Place("k", FOLDER)) == key.default


def test_sections_are_frozen_and_every_number_has_its_bounds() -> None:
    for section, kind in SECTIONS.items():
        assert is_dataclass(kind)
        with pytest.raises(AttributeError):
            setattr(getattr(Settings(), section), fields(kind)[0].name, 1)
        for name, hint in hints_of(kind).items():
            assert rule_of(hint) is not None or hint not in {int, float}, f"{section}.{name}"


def test_as_many_sessions_as_the_runtime_keeps() -> None:
    assert settings(f"[limits]\nsessions = {MAX_SESSIONS}").limits.sessions == MAX_SESSIONS
    assert str(MAX_SESSIONS) in refusal(f"[limits]\nsessions = {MAX_SESSIONS + 1}")


# ---- what a reload takes over ----

CHANGED = [  # file, path, whether live, the line
    ('[log]\nlevel = "debug"', "log.level", True, "log.level: info -> debug"),
    ("[log]\nprompts = true", "log.prompts", False, "log.prompts: false -> true (needs a restart)"),
    ("[limits]\nqueued = 32", "limits.queued", True, "limits.queued: 64 -> 32"),
    ('[limits]\npayload = "32KiB"', "limits.payload", True, "limits.payload: 64KiB -> 32KiB"),
    ('[arena]\nsize = "2GiB"', "arena.size", False, "arena.size: auto -> 2GiB (needs a restart)"),
    ('[engine]\njournal = "1GiB"', "engine.journal", False, "engine.journal: 64MiB -> 1GiB (needs a restart)"),
    ('[zeromq]\nlisten = ["ipc:///a", "ipc:///b"]', "zeromq.listen", False,
     "zeromq.listen: ipc:///run/arenite/arenite.sock -> ipc:///a, ipc:///b (needs a restart)"),
    ('[zeromq]\nstatus = ""', "zeromq.status", False,
     "zeromq.status: ipc:///run/arenite/status.sock -> none (needs a restart)"),
    ('[zeromq]\nmode = "0600"', "zeromq.mode", False, "zeromq.mode: 0660 -> 0600 (needs a restart)"),
    ('[sessions]\nttl = "90s"', "sessions.ttl", False, "sessions.ttl: 24h -> 90s (needs a restart)"),
    (model(), "model[0]", True, "model[0]: a added"),
]


@pytest.mark.parametrize(("text", "key", "live", "line"), CHANGED)
def test_a_change_has_its_path_and_says_whether_it_is_live(text: str, key: str, line: str, *, live: bool) -> None:
    old, new = Settings(), settings(text)
    (change,) = changes(old, new)
    assert (change.key, change.live, change.text) == (key, live, line)
    (back,) = changes(new, old)
    assert (back.key, back.live, back.old, back.new) == (key, live, change.new, change.old)
    assert applied(old, new) == (new if live else old)


def test_the_allow_list_is_live_and_the_secret_is_not() -> None:
    tcp = '[zeromq]\nlisten = ["tcp://*:5560"]\ncurve_secret = "file:key"\nallow = "clients"\n'
    found = changes(settings(tcp), settings(tcp.replace("clients", "friends").replace("file:key", "credential:key")))
    assert [(each.key, each.live) for each in found] == [("zeromq.curve_secret", False), ("zeromq.allow", True)]
    assert found[0].text == "zeromq.curve_secret: file:/etc/arenite/key -> credential:key (needs a restart)"


def test_models_are_known_by_their_names() -> None:
    old = settings(model('name = "x"') + "\n" + model('name = "y"') + "\n" + model('name = "z"'))
    new = settings(model('name = "z"') + "\n" + model('name = "y"', "context = 512", "streams = 2") + "\n" + model())
    assert changes(old, new) == (
        Change("model[1].context", 4096, 512, True, "y", "model[1].context: 4096 -> 512"),
        Change("model[1].streams", 8, 2, True, "y", "model[1].streams: 8 -> 2"),
        Change("model[2]", None, new.model[2], True, "a", "model[2]: a added"),
        Change("model[0]", old.model[0], None, True, "x", "model[0]: x removed"),
    )
    assert applied(old, new).model == new.model


def test_live_keys_exist_and_the_same_settings_differ_in_nothing() -> None:
    assert changes(read(example(), FOLDER), read(example(), FOLDER)) == ()
    for key in LIVE:
        assert hasattr(Settings(), key) if "." not in key else value_at(Settings(), key) is not MISSING


def test_live_changes_that_need_others_wait_for_the_restart() -> None:
    new = Settings(limits=Limits(payload=2 << 20), zeromq=Zeromq(max_message=4 << 20))
    with pytest.raises(ConfigError, match=r"limits\.payload is 2MiB, more than zeromq\.max_message with 1MiB"):
        applied(Settings(), new)


def test_texts_of_values_are_those_of_the_file() -> None:
    hints = hints_of(Zeromq)
    assert as_text(hints["heartbeat"], 2.0) == "2s"
    assert as_text(hints["listen"], ()) == "none"
    assert as_text(hints["curve_secret"], None) == "none"


# ---- the lines at the start ----

def test_the_summary_says_what_was_asked_granted_and_left() -> None:
    asked = replace(
        settings('[arena]\nsize = "64MiB"\n[service]\nname = "box1"\n' + model('name = "missing"')),
        model=(ModelOptions("null:", context=512, streams=2), ModelOptions("missing.gguf")),
    )
    with arenite.Runtime() as runtime:
        runtime.load("null:", context=512, streams=2)
        arena = Snapshot(64 << 20, 16 << 20, 48 << 20, 40 << 20, (), (), frozenset(), 0)
        status = replace(runtime.status(), arena=arena)
    plan = Plan((Need("null", "kv", 16 << 20), Need("null", "kv", 4096, "CUDA0")), 4096)
    said = asked_and_granted(asked, status, plan)
    lines = {line.split("  ")[0]: re.split(" {2,}", line)[1:] for line in said.splitlines()}
    assert said.startswith("box1 is ")
    assert lines["arena"] == ["64MiB (models: 16.0 MiB)", "64.0 MiB", "48.0 MiB, in one piece 40.0 MiB"]
    assert lines["arena on CUDA0"] == ["auto (models: 4.0 KiB)", "none"]
    assert lines["model null"][0] == "512 cells, 2 streams, gpu layers auto"
    assert lines["model null"][1].startswith("512 cells, 2 streams, ")
    assert lines["model null"][2] == "512 cells, 2 streams"
    assert lines["model missing"][1:] == ["not loaded"]
    assert lines["requests"] == ["1024", "64 waiting", "1024"]
    assert "listens on ipc:///run/arenite/arenite.sock" in said


def test_the_summary_of_a_service_without_anything() -> None:
    status = Status("degraded", "ggml's layout is not known", None, False, False, (), 0)
    said = asked_and_granted(settings('[service]\nname = "b"\n[zeromq]\nlisten = []'), status, None)
    assert said.splitlines()[0] == "b is degraded: ggml's layout is not known"
    assert re.search(r"\narena +auto +none\n", said)
    assert said.endswith("listens on nowhere")
