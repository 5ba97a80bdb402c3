"use strict";
// What plotly.js does to styles as text, the policy of this page refuses; the same through the CSSOM is allowed. The
// one style sheet that it writes out in full is for maps, which no report has: it is left empty.
(function () {
  Object.defineProperty(HTMLStyleElement.prototype, "textContent", {get: function () { return ""; }, set: function () {}});
  const set = Element.prototype.setAttribute, setNS = Element.prototype.setAttributeNS;
  Element.prototype.setAttribute = function (name, value) {
    if (String(name).toLowerCase() === "style") this.style.cssText = value;
    else set.call(this, name, value);
  };
  Element.prototype.setAttributeNS = function (space, name, value) {
    if (space === null && String(name).toLowerCase() === "style") this.style.cssText = value;
    else setNS.call(this, space, name, value);
  };
})();
