"""What the server tells of itself, read as its clients read it: by Schemathesis, and in a browser.

Needs chromium: apt-get install chromium.
"""
