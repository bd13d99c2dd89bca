"""Variants behind a server: what is asked of it, and what its faults do to a request and to a run."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from faulty import MODEL, Fault, Server, answer
from running import ROOT, begin, generations, popalign, scripted, stored, until

from factory import cookbook
from factory.engine import chat, endpoint
from factory.engine.base import Completion, Request, RequestError
from factory.engine.endpoint import EndpointEngine, Window
from factory.errors import InputError, RunError
from factory.model import check_models, token_counter
from factory.recipe import Variant
from factory.run import Run, damaged
from factory.secret import Secret, from_environment
from strategies.contrast import Message, Sampling

KEY = "sk-popalign-0123456789abcdef"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as started:
        yield started


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the engine in this process; full runs wait as they do for users."""
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(endpoint, "LONGEST_TRIAL_WAIT_S", 0.1)
    monkeypatch.setattr(endpoint, "TRIAL_TIMEOUT_S", 0.5)


def engine(url: str, *, key: str | None = None, **settings: Any) -> EndpointEngine:
    variant = Variant(engine="endpoint", model=MODEL, url=url, **{"request_timeout": 5, "patience": 5, **settings})
    return EndpointEngine("strong", variant, Secret(key) if key else None)


def request(text: str = "Name a river.", *, seed: int = 0, prefill: str = "", **sampling: Any) -> Request:
    wanted = Sampling(**{"max_tokens": 16, "min_tokens": 0, **sampling})
    return Request("0" * 32, (("user", text),), prefill, wanted, seed)


def ask(asked: EndpointEngine, *requests: Request) -> list[Completion | BaseException]:
    async def all_of_them() -> list[Completion | BaseException]:
        return await asyncio.gather(*(asked.complete(each) for each in requests), return_exceptions=True)

    return asyncio.run(all_of_them())


def first(number: int, fault: Fault) -> Callable[[dict[str, Any], int], Fault | None]:
    """A fault of the first so many replies."""
    return lambda body, i: fault if i < number else None


def at(word: str, fault: Fault) -> Callable[[dict[str, Any], int], Fault | None]:
    """A fault of the prompts that hold a word."""
    return lambda body, i: fault if word in body["messages"][-1]["content"] else None


def test_request_holds_what_is_set_and_nothing_else(server: Server) -> None:
    (done,) = ask(engine(f"{server.url}/"), request(seed=7))
    assert server.bodies == [
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Name a river."}],
            "seed": 7,
            "max_tokens": 16,
        }
    ]
    assert isinstance(done, Completion)
    assert (done.finish, done.prompt_tokens, done.tokens) == ("stop", 3 + 5, 12)


def test_request_with_prefill_and_all_of_the_sampling(server: Server) -> None:
    wanted = {"temperature": 0.0, "top_p": 0.5, "min_tokens": 4, "repetition_penalty": 1.1}
    ask(engine(server.url), request(prefill="(good response)", stop=("\n\n",), bad_words=("x",), **wanted))
    (body,) = server.bodies
    assert body["messages"][-1] == {"role": "assistant", "content": "(good response)"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert {name: body[name] for name in wanted} == wanted
    assert (body["stop"], body["bad_words"]) == (["\n\n"], ["x"])


@pytest.mark.parametrize(
    "fault",
    [
        Fault(500, b"Internal Server Error"),
        Fault(503, b'{"error": "loading"}'),
        Fault(408),
        Fault(200, b"<html>I am a proxy</html>"),
        Fault(200, b"[]"),
        Fault(200, b'{"choices": []}'),
        Fault(200, b'{"choices": [{"message": {"content": 7}}]}'),
        Fault(200, answer({"messages": [{"content": "Hello."}]}), how="cut"),
        Fault(200, b'{"choices": [{"message": {"content": "half an"}, "finish_reason": "abort"}]}'),
        Fault(200, bytes(2**24 + 1)),
    ],
    ids=lambda fault: f"{fault.status} {fault.content[:20].decode()} {fault.how}",
)
def test_fault_that_passes_costs_no_completion(server: Server, fault: Fault) -> None:
    server.faults = first(3, fault)
    done = ask(engine(server.url), *(request(seed=i) for i in range(4)))
    assert all(isinstance(each, Completion) for each in done), done
    expected = [
        json.loads(answer({**server.bodies[0], "seed": i}))["choices"][0]["message"]["content"] for i in range(4)
    ]
    assert [each.text for each in done if isinstance(each, Completion)] == expected


@pytest.mark.parametrize("value", ["1", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_retry_after_is_waited_for(server: Server, value: Any) -> None:
    """A date has whole seconds: two from now are at least one."""
    server.faults = first(1, Fault(429, headers={"Retry-After": value if isinstance(value, str) else value()}))
    began = time.monotonic()
    (done,) = ask(engine(server.url), request())
    assert isinstance(done, Completion)
    assert 0.9 < time.monotonic() - began < 4


def test_retry_after_of_a_day_is_not_believed() -> None:
    assert chat.retry_after("86400") == 86400
    assert chat.retry_after("soon") == chat.retry_after(None) == 0
    assert endpoint.wait(0, 86400, 30) <= endpoint.LONGEST_ASKED_S + 0.01


@pytest.mark.parametrize("alone", [True, False])
def test_request_that_always_fails_becomes_data_while_others_are_answered(server: Server, alone: bool) -> None:
    server.faults = at("poison", Fault(500, b"boom"))
    others = [] if alone else [request(seed=i) for i in range(20)]
    failed, *done = ask(engine(server.url), request("poison"), *others)
    assert isinstance(failed, RequestError)
    assert str(failed) == "endpoint_failed: 8 attempts, the last: the server answers 500: boom"
    assert all(isinstance(each, Completion) for each in done)
    assert sum("poison" in body["messages"][-1]["content"] for body in server.bodies) == 8


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_request_that_takes_too_long_becomes_data_after_three_times(server: Server, how: str) -> None:
    server.faults = at("slow", Fault(200, bytes(100), how=how))
    failed, done = ask(engine(server.url, request_timeout=0.4), request("slow"), request())
    assert isinstance(failed, RequestError)
    assert str(failed) == "endpoint_failed: 3 attempts, the last: no answer within 0.4 s"
    assert isinstance(done, Completion)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Fault(400, b'{"error": {"message": "no such role"}}'),
            "endpoint_refused: the server answers 400: no such role",
        ),
        (Fault(422, b'{"detail": [{"msg": "x"}]}'), "endpoint_refused: the server answers 422: [{'msg': 'x'}]"),
        (
            Fault(400, b'{"error": {"message": "This model\'s maximum context length is 9 tokens."}}'),
            "over_input_limit: the server answers 400: This model's maximum context length is 9 tokens.",
        ),
        (
            Fault(200, b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}'),
            "endpoint_refused: the server's content filter withholds the answer",
        ),
    ],
)
def test_request_that_is_refused_becomes_data_at_once(server: Server, fault: Fault, said: str) -> None:
    server.faults = at("bad", fault)
    refused, done = ask(engine(server.url), request("bad"), request())
    assert isinstance(refused, RequestError) and isinstance(done, Completion)
    assert str(refused) == said
    assert len(server.bodies) == 2


def test_request_that_alone_is_forbidden_becomes_data(server: Server) -> None:
    """Moderated gateways answer 403 to a prompt that they dislike."""
    served = engine(server.url)
    server.faults = at("forbidden", Fault(403, b"moderated"))

    async def both() -> list[Completion | BaseException]:
        await served.complete(request())
        return await asyncio.gather(served.complete(request("forbidden")), return_exceptions=True)

    (refused,) = asyncio.run(both())
    assert isinstance(refused, RequestError)


@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_server_that_denies_from_the_start_ends_the_run(server: Server, status: int) -> None:
    server.faults = first(100, Fault(status, b"no", {"Location": "http://127.0.0.1:9/"}))
    (denied,) = ask(engine(server.url), request())
    assert isinstance(denied, InputError)
    assert str(denied) == f"variants.strong: {server.url} serves nothing to us: the server answers {status}: no"


def test_outage_costs_no_request_and_is_not_counted(server: Server) -> None:
    """Many more attempts than eight would fit into the outage; meanwhile only trials knock, one after another."""
    served = engine(server.url, patience=20)
    server.delay = 0.05
    halves = threading.Timer(0.5, server.cut), threading.Timer(2.5, server.listen)
    for half in halves:
        half.start()
    done = ask(served, *(request(seed=i) for i in range(600)))
    for half in halves:
        half.join()
    assert all(isinstance(each, Completion) for each in done)
    assert 600 < len(server.bodies) < 600 + 128 + 50, "what was in flight at the cut is asked again, and little more"


def test_outage_longer_than_the_patience_ends_the_run(server: Server) -> None:
    served = engine(server.url, patience=1)
    server.cut()
    began = time.monotonic()
    ended = ask(served, *(request(seed=i) for i in range(50)))
    assert 1 < time.monotonic() - began < 3
    for error in ended:
        assert isinstance(error, RunError)
        assert f"{server.url} has completed nothing for 1 s (patience 1), the last: ConnectError" in str(error)
    assert isinstance(pickle.loads(pickle.dumps(ended[0])), RunError)


def test_server_that_hangs_altogether_ends_the_run(server: Server) -> None:
    server.faults = first(1000, Fault(how="hang"))
    (ended,) = ask(engine(server.url, patience=1, request_timeout=0.5), request())
    assert isinstance(ended, RunError)
    assert "no answer within 0.5 s" in str(ended)


def test_window_halves_once_a_round_trip_and_grows_by_a_sixteenth() -> None:
    window = Window(64)
    began = time.monotonic()
    for _ in range(10):  # all were in flight together
        window.shrink(began)
    assert window.size == 32
    window.shrink(time.monotonic())
    assert window.size == 16
    for _ in range(16):  # a round: 64 / 16 = 4 more
        window.grow()
    assert 19 < window.size <= 20
    for _ in range(1000):
        window.grow()
    assert window.size == 64
    for _ in range(10):
        window.shrink(time.monotonic())
    assert window.size == 1


def test_window_never_has_more_in_flight_than_it_is_wide(server: Server) -> None:
    """A server that takes four at once and refuses the fifth is found out, and all are served."""
    server.delay = 0.02
    server.faults = lambda body, i: Fault(429) if server._busy > 4 else None
    served = engine(server.url, max_num_seqs=32)
    done = ask(served, *(request(seed=i) for i in range(200)))
    assert all(isinstance(each, Completion) for each in done)
    assert server.most_at_once <= 32
    assert served._window.size < 16
    assert len(server.bodies) < 2 * 200, "the window has not adapted"


def test_secret_is_in_no_repr_and_no_error(server: Server) -> None:
    key = Secret(KEY)
    assert KEY not in f"{key} {key!r} {[key]} {pickle.loads(pickle.dumps(key))!r}"
    assert pickle.loads(pickle.dumps(key)).reveal() == KEY
    server.key = "another"  # it quotes what it was given
    (denied,) = ask(engine(server.url, key=KEY), request())
    assert isinstance(denied, InputError)
    assert "bad key in 'Authorization: Bearer ***'" in str(denied)


def test_secret_at_the_end_of_a_long_error_is_not_cut_in_half() -> None:
    text = "x" * (chat.LONGEST_MESSAGE - 10) + KEY
    assert "sk-" not in chat.message(text.encode(), Secret(KEY))


def test_key_comes_from_the_named_variable_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert from_environment("variants.strong.api_key_env", None) is None
    key = from_environment("variants.strong.api_key_env", "OPENAI_API_KEY")
    assert key is not None and key.reveal() == KEY
    with pytest.raises(InputError, match=r"variants\.strong\.api_key_env: .* NO_SUCH_KEY is not set"):
        from_environment("variants.strong.api_key_env", "NO_SUCH_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-Header: 1")
    with pytest.raises(InputError) as error:
        from_environment("variants.strong.api_key_env", "OPENAI_API_KEY")
    assert KEY not in str(error.value)


def ordered(url: str, *, strategies: dict[str, Any] | None = None, **keys: Any) -> cookbook.Order:
    variants = {"strong": {"engine": "endpoint", "model": MODEL, "url": url, **keys}}
    strategies = strategies or {"demon": {"variant": "strong"}}
    content = {"run": "r", "prompts": {"source": "builtin:demo"}, "variants": variants, "strategies": strategies}
    return cookbook.check(content, "r")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"url": None}, "needs url, such as http://host:8000/v1"),
        ({"url": "ftp://host/v1"}, "url is not of the form http://host:8000/v1"),
        ({"url": "http://me:secret@host/v1"}, "url holds more than an address"),
        ({"url": "http://host/v1?key=secret"}, "url holds more than an address"),
        ({"model": "scripted"}, "needs model"),
        ({"gpus": 1}, "gpus is the server's own business"),
        ({"dtype": "float32"}, "dtype is the server's own business"),
        ({"api_key_env": "sk_live_secret"}, "api_key_env is not the NAME of an environment variable"),
        ({"engine": "vllm"}, "url is for engine 'endpoint'"),
        ({"engine": "vllm", "url": None, "patience": 3}, "patience is for engine 'endpoint'"),
    ],
)
def test_recipe_with_a_mistake_at_an_endpoint_is_answered(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        ordered(**{"url": "http://host/v1", **keys})
    assert said in str(error.value)
    assert "secret" not in str(error.value)


def test_recipe_that_trains_a_variant_behind_an_endpoint_is_refused() -> None:
    content = {**ordered("http://host/v1").recipe.model_dump(mode="json"), "train": {"variant": "strong"}}
    with pytest.raises(InputError, match=r"train\.variant: 'strong' is a model behind an endpoint"):
        cookbook.check(content, "r")


def test_check_passes_a_server_that_serves_the_model_and_prefills(server: Server) -> None:
    prefix = {"prefix": {"variant": "strong"}}
    check_models(ordered(server.url, strategies=prefix))
    tried = server.bodies[0]
    assert tried["max_tokens"] == 1
    assert tried["messages"] == [{"role": "user", "content": "Hello."}]


@pytest.mark.parametrize(
    ("strategy", "options", "way"),
    [
        ("prefix", {}, "strategies.prefix.affix=system"),
        ("elicitive", {"format": "forced"}, "strategies.elicitive.format=free"),
    ],
)
def test_check_names_the_strategy_that_needs_a_prefill_and_the_way_out(
    server: Server, strategy: str, options: dict[str, Any], way: str
) -> None:
    server.knows_prefill = False
    with pytest.raises(InputError) as error:
        check_models(ordered(server.url, strategies={strategy: {"variant": "strong", **options}}))
    assert str(error.value) == (
        f"strategies.{strategy}: the server of variant 'strong' ({server.url}) cannot prefill the assistant turn; "
        f"set {way}"
    )
    key, _, value = way.rpartition(".")[2].partition("=")
    check_models(ordered(server.url, strategies={strategy: {"variant": "strong", **options, key: value}}))


def test_check_names_what_is_wrong_with_a_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.server.WAIT_S", 0.01)
    with pytest.raises(InputError, match=rf"strong\.model: .* serves no 'faulty-8b'; did you mean '{MODEL}'\?$"):
        check_models(ordered(server.url, model="faulty-8b"))
    server.key = "another"
    monkeypatch.setenv("SERVER_KEY", KEY)
    with pytest.raises(InputError, match=r"variants\.strong\.url: .* 401: bad key in 'Authorization: Bearer \*\*\*'"):
        check_models(ordered(server.url, api_key_env="SERVER_KEY"))
    server.key = None
    server.faults = lambda body, i: Fault(400, b"repetition_penalty?") if "repetition_penalty" in body else None
    order = ordered(server.url)
    check_models(order)
    sampling = order.recipe.sampling.model_copy(update={"repetition_penalty": 1.1})
    recipe = order.recipe.model_copy(update={"sampling": sampling})
    with pytest.raises(InputError, match="refuses requests such as this recipe's: the server answers 400: repetition"):
        check_models(cookbook.Order(recipe, order.preset, order.strategies))
    server.cut()
    with pytest.raises(InputError, match=r"variants\.strong\.url: .* serves nothing to us: ConnectError"):
        check_models(order)


def test_prompts_are_counted_in_bytes_where_only_servers_have_tokenizers(server: Server) -> None:
    count = token_counter(ordered(server.url))
    assert count((Message("user", "twelve bytes"),)) == 3
    assert count((Message("user", "日本語"),)) == 3  # nine bytes


def test_plan_does_not_contact_the_server(tmp_path: Path) -> None:
    recipe = served(tmp_path, "http://no.such.host.invalid/v1", 3)
    done = popalign("plan", str(recipe), "--json")
    assert done.returncode == 0, done.stderr
    stages = {stage["variant"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert (stages["strong"]["cpus"], stages["strong"]["gpus"], stages["strong"]["replicas"]) == (1, 0, 1)


def served(folder: Path, url: str, num_prompts: int, **settings: Any) -> Path:
    """A recipe whose strong variant is behind a server; the others are scripted."""
    strong = {"engine": "endpoint", "model": MODEL, "url": url, "api_key_env": "SERVER_KEY", **settings}
    others = {name: {"engine": "scripted"} for name in ("small", "second")}
    return scripted(folder, num_prompts, variants={"strong": strong, **others}, rows_per_task=8)


def require_balance(run: Path, num_prompts: int) -> None:
    rows = generations(run)
    assert len({row["prompt_id"] for row in rows}) == len(rows) == num_prompts
    assert {len({c["generation_id"] for c in row["completions"]}) for row in rows} == {10}
    done = popalign("pairs", str(run))
    assert done.returncode == 0, done.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    for outcomes in manifest["pairs"]["strategies"].values():
        assert outcomes["kept"] + sum((outcomes["rejected"] | outcomes["failed"]).values()) == num_prompts
    assert damaged(Run.open(run)) == []


def require_no_key(run: Path, *texts: str) -> None:
    """The key is in no file of the run, the logs of Ray's processes among them, and not on the terminal."""
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.parent.name == "ray" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert not [text for text in texts if KEY in text]


def test_run_survives_a_cut_of_20_seconds_and_all_else_that_servers_do(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def faults(body: dict[str, Any], number: int) -> Fault | None:
        last = body["messages"][0]["content"]
        if "subject 7." in last:
            return Fault(400, b'{"error": {"message": "subject 7 is refused"}}')
        quoting = f"Authorization: Bearer {KEY}".encode()
        return {
            5: Fault(500, quoting),
            11: Fault(429, headers={"Retry-After": "1"}),
            17: Fault(200, b"<html>"),
            23: Fault(200, answer(body), how="cut"),
        }.get(number % 200)

    with Server(faults=faults, delay=0.1, key=KEY) as server:
        recipe = served(tmp_path, server.url, 150, max_num_seqs=16)
        process = begin("generate", str(recipe), SERVER_KEY=KEY)
        until(lambda: stored(run) >= 30, process)
        server.cut()
        time.sleep(1)  # those that it was at count as answered, and never arrived
        answered = server.num_answered
        time.sleep(19)
        assert process.poll() is None and server.num_answered == answered
        server.listen()
        out, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
    assert server.num_answered <= 150 * 8 + 16 + 30
    require_balance(run, 150)
    manifest = json.loads((run / "manifest.json").read_text())
    # The eight requests of subject 7 but the revision, which has no answer to revise.
    failed = {"endpoint_refused": 7, "the answer that it replies to is missing": 1}
    assert manifest["generations"]["by_variant"]["strong"]["failed"] == failed
    assert not [fault for effort in manifest["effort"] for fault in effort["faults"]]
    require_no_key(run, out, error)


@pytest.mark.soak
def test_run_whose_server_stays_away_or_revokes_the_key_stops_with_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Server(delay=0.05, key=KEY) as server:
        recipe = served(tmp_path, server.url, 120, max_num_seqs=16, patience=3)
        process = begin("generate", str(recipe), SERVER_KEY=KEY)
        until(lambda: stored(run) >= 16, process)
        server.cut()
        out, error = process.communicate(timeout=100)
        assert process.returncode == 1, error
        assert len(error.strip().splitlines()) == 1
        assert f"variant 'strong': {server.url} has completed nothing for" in error and "ConnectError" in error
        require_no_key(run, out, error)
        before = stored(run)
        server.listen()
        process = begin("generate", str(recipe), SERVER_KEY=KEY)
        until(lambda: stored(run) >= before + 16, process)
        server.key = "another"
        out, error = process.communicate(timeout=100)
        assert process.returncode == 2, error
        assert len(error.strip().splitlines()) == 1
        assert "variants.strong" in error and "401: bad key in 'Authorization: Bearer ***'" in error
        require_no_key(run, out, error)
        server.key = KEY
        done = popalign("generate", str(recipe), SERVER_KEY=KEY)
        assert done.returncode == 0, done.stderr
    assert len({row["prompt_id"] for row in generations(run)}) == 120
    require_no_key(run, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def vllm_server(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real one on the CPU, on a free port; the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The command `vllm` looks for a package of that name, which the CPU build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(embedded_model)]
    command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "1024", "--max-num-batched-tokens", "1024", "--no-enable-chunked-prefill"]
    command += ["--enforce-eager", "--block-size", "32"]
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    log = tmp_path_factory.mktemp("vllm") / "log"
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **settings, "VLLM_API_KEY": KEY},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )

    def ready() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        until(ready, seconds=200)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.engine
def test_vllm_server_greedy_agrees_with_transformers_after_a_prefill_too(
    vllm_server: str, embedded_model: Path
) -> None:
    """So does the engine `vllm`, by a test of its own: where a model is served changes no text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from factory.model import render

    questions = ["What is the capital of France?", "Name three fruits."]
    prefills = ["", "(good response)", "Thought: short.\nResponse:"]
    wanted = [request(q, prefill=p, temperature=0.0, max_tokens=24) for q in questions for p in prefills]
    served = engine(vllm_server, key=KEY, request_timeout=100)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    model = AutoModelForCausalLM.from_pretrained(embedded_model, dtype=torch.float32).eval()
    for each, done in zip(wanted, ask(served, *wanted), strict=True):
        assert isinstance(done, Completion), done
        ids = torch.tensor([render(tokenizer, each.messages, each.prefill)])
        output = model.generate(ids, max_new_tokens=24, do_sample=False, temperature=None, top_p=None)
        assert done.text == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert done.prompt_tokens == ids.shape[1]
        assert done.finish == ("length" if done.tokens == 24 else "stop")


@pytest.mark.engine
@pytest.mark.soak
def test_vllm_server_serves_a_run_with_prefills_and_refuses_what_is_too_long(vllm_server: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    variants = {"strong": {"engine": "endpoint", "model": MODEL, "url": vllm_server, "api_key_env": "SERVER_KEY"}}
    strategies = {"prefix": {"variant": "strong"}, "elicitive": {"variant": "strong", "format": "forced"}}
    sampling = {"max_tokens": 16, "min_tokens": 8, "repetition_penalty": 1.1, "stop": ["\n\n"], "temperature": 0.7}
    extra = [f"Repeat {'word ' * 1010}"]  # of 1,024 tokens at most
    recipe = scripted(tmp_path, 5, extra=extra, variants=variants, strategies=strategies, sampling=sampling)
    done = popalign("generate", str(recipe), "--set", "prompts.max_tokens=4096", SERVER_KEY=KEY)
    assert done.returncode == 0, done.stderr
    done = popalign("pairs", str(run))
    assert done.returncode == 0, done.stderr
    rows = generations(run)
    assert len(rows) == 6
    for row in rows:
        too_long = row["prompt"][-1]["content"].startswith("Repeat")
        for completion in row["completions"]:
            assert (completion["error"] is not None) == too_long, completion["error"]
            if not too_long:
                assert 8 <= completion["tokens"] <= 32 and completion["prompt_tokens"] > 20
    failed = json.loads((run / "manifest.json").read_text())["generations"]["by_variant"]["strong"]["failed"]
    assert set(failed) <= {"over_input_limit", "the answer that it replies to is missing"}
    assert failed["over_input_limit"] == 4  # two affixes, two thoughts
    require_no_key(run, done.stdout, done.stderr)
