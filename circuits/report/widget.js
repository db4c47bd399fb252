// The report of a circuit inside a notebook's cell. The page is in a frame of its own, which may run its script and nothing
// else; it tells which edges it lists and which node is chosen, and that is all that comes back.

function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "allow-scripts");
  frame.title = "report of a circuit";
  Object.assign(frame.style, { width: "100%", height: `${model.get("height")}px`, border: "0" });
  const listen = (event) => {
    if (event.source !== frame.contentWindow || !Array.isArray(event.data?.edges)) return;
    model.set("node", String(event.data.node ?? ""));
    model.set("edges", event.data.edges.map(String));
    model.save_changes();
  };
  addEventListener("message", listen);
  frame.srcdoc = model.get("page");
  el.append(frame);
  return () => removeEventListener("message", listen);
}

export default { render };
