"""For Jupyter and IPython: pictures of a recording, and ``%%execwatch``.

::

    %load_ext execwatch

    %%execwatch --tree --out build
    !make

    from execwatch.notebook import timeline, tree
    timeline(build)

Needs ``pip install 'execwatch[notebook]'``. Events, recordings, trees and summaries show
themselves as tables without it.
"""

from execwatch.notebook.figures import timeline as timeline
from execwatch.notebook.figures import tree as tree
from execwatch.notebook.magic import load_ipython_extension as load_ipython_extension
