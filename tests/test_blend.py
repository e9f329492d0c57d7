import blend
import mlx.core as mx
import pytest
from tiny_folder import save_tiny

from trm_mlx import checkpoint
from trm_mlx.model import named

pytest_plugins = ["tiny_folder"]


@pytest.fixture
def two(tmp_path):
    return save_tiny(tmp_path / "base"), save_tiny(tmp_path / "tuned", noise=0.1)


def test_a_blend_lies_between_its_models(two, tmp_path):
    base, tuned = two
    blend.main(["--base", str(base), "--tuned", str(tuned), "--share", "0.25", "--out", str(tmp_path / "out")])
    a, b, found = (named(checkpoint.load_model(each).parameters()) for each in (base, tuned, tmp_path / "out"))
    for name, array in found.items():
        assert mx.allclose(array, 0.75 * a[name] + 0.25 * b[name], atol=2e-3)
    assert any(not mx.allclose(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--share", "1.5"], "share must lie between 0 and 1, got 1.5"),
        (["--out", "{tmp}"], "--out must be a new folder"),
        (["--tuned", "{tmp}/none"], "no model folder"),
    ],
)
def test_what_cannot_be_blended_ends_with_2(two, tmp_path, capsys, flags, message):
    given = ["--base", str(two[0]), "--tuned", str(two[1]), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as left:
        blend.main([*given, *(flag.replace("{tmp}", str(tmp_path)) for flag in flags)])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
