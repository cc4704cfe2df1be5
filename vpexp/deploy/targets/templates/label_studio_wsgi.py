"""Serves the ML backend: python _wsgi.py [--port 9090], or gunicorn _wsgi:app. Written by vpexp."""

import argparse

from label_studio_ml.api import init_app
from model import SegmentAnything

app = init_app(model_class=SegmentAnything)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090)
    options = parser.parse_args()
    app.run(host=options.host, port=options.port)
