"""What ops and models cost here, and against every installed peer: ``foveate bench``.

A case (:mod:`foveate.bench.cases`) is one op, mixer or model over sizes; a peer (:mod:`foveate.bench.peers`) is another
library's way of doing the same. The runner times what agrees with its definition, everything interleaved, and leaves a
record: numbers alone, from which the tables, the page and the Markdown are made.
"""
