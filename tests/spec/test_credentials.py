"""No secret gets into a stored spec, and none is ever shown while refusing it."""

import pytest

from altgrad.spec import Document, SpecError
from altgrad.spec.credentials import asks_for_secret, looks_secret, refuse_credentials

HEX = "0123456789abcdef0123456789abcdef01234567"
SECRETS = [
    "hf_" + "aB3" * 11 + "x",
    "wandb_v1_" + "aB3" * 20,
    HEX,
    "local-" + HEX,
    "sk-proj-" + "aB3" * 12,
    "sk-ant-api03-" + "aB3" * 12,
    "AKIA" + "ABCD1234" * 2,
    "AIza" + "a" * 35,
    "ghp_" + "a1" * 18,
    "github_pat_" + "a1" * 20,
    "glpat-" + "a1" * 10,
    "xoxb-1234567890-abc",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
    "WANDB_API_KEY=whatever",
    "password: hunter2",
    "-----BEGIN RSA PRIVATE KEY-----",
    "https://me:hunter2@example.org/data",
    "Bearer abcdefghijklmnop",
]
HARMLESS = [
    "", "run", "gpt-e4m3fn", "e4m3b11fnuz", "blocks.*.mlp.up", "data/secret-garden.txt", "hf_home", "task-force-sketch",
    "risk-averse-learning-rate", "the token and the key", "tokenizer", "https://example.org:8080/a@b",
    "sk-adamw-e4m3fn-baseline", "meta-llama/Llama-3.2-1B",
    HEX[:39], HEX + "0", "C:\\data\\text.txt", "desk-lamp-of-the-grandmother", "a" * 200,
]  # fmt: skip
KEYS = ["password", "db_password", "api_key", "apikey", "apiKey", "API-KEY", "wandb_api_key", "WANDB_API_KEY", "token",
        "hf_token", "auth_token", "access_token", "aws_secret_access_key", "secret", "client_secret", "credentials",
        "private_key", "Authorization"]  # fmt: skip
FREE_KEYS = ["tokens", "tokenizer", "batch_tokens", "pad_token", "key", "keep", "monkey", "author", "path", "keys"]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "text",
    ["name: {}", "a: [1, {}]", "a: {{b: {}}}", "? {}\n: 1", "a: {{b: &x {}}}"],
    ids=["", "list", "map", "key", "anchor"],
)
def test_a_text_that_looks_like_a_secret_is_refused_and_not_shown(secret: str, text: str) -> None:
    quoted = f"'{secret}'"
    with pytest.raises(SpecError, match=r"^spec:1:\d+: .* looks like a secret; .* environment") as caught:
        refuse_credentials(Document.parse(text.format(quoted), "spec"))
    assert secret[-6:] not in str(caught.value)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_asks_for_a_secret_is_refused_whatever_it_holds(key: str) -> None:
    assert asks_for_secret(key)
    with pytest.raises(SpecError, match=rf"^spec:2:3: 'a\.{key}' looks like a secret") as caught:
        refuse_credentials(Document.parse(f"a:\n  {key}: hunter2", "spec"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", FREE_KEYS)
def test_keys_of_ordinary_specs_are_left_alone(key: str) -> None:
    assert not asks_for_secret(key)


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_texts_are_left_alone(text: str) -> None:
    assert not looks_secret(text)


@pytest.mark.parametrize("key", ["revision", "commit", "sha1", "content_hash"])
def test_forty_hex_digits_may_be_a_revision(key: str) -> None:
    refuse_credentials(Document.parse(f"{key}: '{HEX}'", "spec"))
