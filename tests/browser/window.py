"""A browser window that nobody sees: Chromium as Qt ships it, told what to do through its DevTools port."""

import os
import sys


def main(port: str) -> None:
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    os.environ["QTWEBENGINE_REMOTE_DEBUGGING"] = f"127.0.0.1:{port}"
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--no-sandbox --disable-gpu --disable-dev-shm-usage"

    from PySide6.QtCore import QUrl
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    application = QApplication(sys.argv)
    window = QWebEngineView()
    window.resize(1600, 1000)
    window.setUrl(QUrl("about:blank"))
    window.show()
    sys.exit(application.exec())


if __name__ == "__main__":
    main(sys.argv[1])
