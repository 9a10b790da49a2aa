"""The papers of this repository: what each claims, and whether it came out.

  python -m h2g.papers                   every paper with claim, state and measured result
  python -m h2g.papers check SLUG        trains what the claim needs and says whether it holds

A paper is a folder `experiments/<slug>/`. Its README has one fenced block ```` ```toml paper ````
with what `Paper` lists; its `claim.py` has `check(runs) -> list[Finding]`, where `runs.results(
"tiny,model=x")` trains that variant of `configs/<slug>.py` once and returns its results.
"""

from h2g.papers.claims import Finding as Finding
from h2g.papers.claims import Runs as Runs
from h2g.papers.readme import Paper as Paper
from h2g.papers.readme import papers as papers
from h2g.papers.speed import in_turns as in_turns
from h2g.papers.speed import temporaries as temporaries
