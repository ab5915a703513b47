"""Trackers of three makers on one port: their first bytes tell which protocol each speaks.

Topics, and lines to try it, are in gt06.py, jt808.py and teltonika.py beside this file.

Try it: exproto-app run examples/trackers.py --listen gt06,jt808,teltonika=tcp://127.0.0.1:7993
"""

import gt06
import jt808
import teltonika

from exproto_app import App

app = App()
app.include(gt06.gt06)
app.include(jt808.jt808)
app.include(teltonika.tcp)
