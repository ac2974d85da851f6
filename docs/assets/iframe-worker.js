// The search runs in a worker, which browsers start for no page that is opened from a folder. A hidden frame takes its
// place there: the worker's program is loaded into it, and messages go to and fro as events.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];  // messages from before the program was there
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.onload = () => this.fill(frame.contentWindow, url);
      document.body.append(frame);
    }

    fill(inner, url) {
      if (this.inner) return;  // browsers differ in how often an empty frame is loaded
      this.inner = inner;
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", {data}));
      const script = inner.document.createElement("script");
      script.src = url;
      script.onload = () => {
        const waiting = this.waiting;
        this.waiting = null;
        waiting.forEach((data) => this.postMessage(data));
      };
      inner.document.body.append(script);
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.inner.dispatchEvent(new this.inner.MessageEvent("message", {data}));
    }
  };
}
