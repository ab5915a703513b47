"""Two protocols that nothing tells apart."""

from exproto_app import App

app = App()
app.protocol("a")
app.protocol("b")
