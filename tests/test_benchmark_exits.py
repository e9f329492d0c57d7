import exits
import pytest

from trm_mlx import fused

pytestmark = pytest.mark.skipif(fused.active() != "fused", reason="figures are of the Linux CPU")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--propagate"]])
def test_a_rule_is_scored_beside_all_passes(flags, capsys):
    exits.main(["--data", "docs/fables.txt", "--tokens", "60", "--rules", "change:1.15", *flags])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("none          mean_depth 2.00") and lines[0].endswith("agreement 1.000")
    assert lines[1].startswith("change:1.15   mean_depth 1.")
