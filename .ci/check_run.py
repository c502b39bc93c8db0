"""Fails unless a run's folder is complete and its model beats the mixture."""

import json
import sys
from pathlib import Path

out = Path(sys.argv[1])
metrics = json.loads((out / "metrics.json").read_text())
assert metrics["log_evidence"] > metrics["mixture_log_evidence"] > -30
assert metrics["elbo"] < metrics["log_evidence"]
for name in ("config.yaml", "history.csv", "model.safetensors", "report.html"):
    assert (out / name).stat().st_size > 100, name
assert len(list((out / "figures").glob("*.png"))) >= 5
assert "https://" not in (out / "report.html").read_text()
print(f"log evidence {metrics['log_evidence']:.3f}, mixture {metrics['mixture_log_evidence']:.3f}")
