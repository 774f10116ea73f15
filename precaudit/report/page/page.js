// Searches the tree of modules; the page is whole without it.
(() => {
  const field = document.getElementById("search");
  if (!field) return;
  const leaves = [...document.querySelectorAll("#modules li.leaf")];
  const groups = [...document.querySelectorAll("#modules details")];
  const opened = groups.map(group => group.open);
  const path = item => {
    const names = [item.textContent];
    for (let at = item.parentElement; at && at.id !== "modules"; at = at.parentElement)
      if (at.tagName === "DETAILS") names.unshift(at.querySelector("code").textContent);
    return names.join(".").toLowerCase();
  };
  const texts = leaves.map(path);
  field.closest("p").hidden = false;
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const fits = texts.map(text => wanted.every(word => text.includes(word)));
    leaves.forEach((leaf, at) => { leaf.hidden = !fits[at]; });
    groups.forEach((group, at) => {
      const some = [...group.querySelectorAll("li.leaf")].some(leaf => !leaf.hidden);
      group.parentElement.hidden = !some;
      group.open = wanted.length ? some : opened[at];
    });
    const count = fits.filter(Boolean).length;
    document.getElementById("matches").textContent = wanted.length ? `${count} of ${leaves.length}` : "";
  });
})();
