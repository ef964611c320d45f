"""The page. Gradio lives only here (and is mounted by ``webui.server``)."""
