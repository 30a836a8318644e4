"use strict";
const DATA = "DATA";
const PLANES = { multi: 3, axial: 0, coronal: 1, sagittal: 2, render: 4 };

function mark(group, chosen) {
  for (const button of document.querySelectorAll(`button[data-${group}]`)) {
    button.setAttribute("aria-pressed", String(button.dataset[group] === chosen));
  }
}

async function start() {
  const viewer = new niivue.Niivue({
    backColor: [0.06, 0.09, 0.16, 1],
    crosshairColor: [1, 1, 1, 0.6],
    crosshairWidth: 0.2,
    crosshairWidthUnit: "percent",
    // As in the report's pictures: the patient's right at the left, and sagittal slices look to the left.
    isRadiologicalConvention: true,
    sagittalNoseLeft: true,
    showAllOrientationMarkers: true,
    fontColor: [1, 1, 1, 1],
    logLevel: "error",
  });
  // Structures are also named, for readers who cannot tell their colours apart.
  viewer.onLocationChange = (location) => {
    const names = DATA.layers.map((layer, index) => {
      const value = Math.round(location.values[index + 1]?.value ?? 0);
      return `${layer.name}: ${DATA.colours.labels[DATA.colours.I.indexOf(value)] || "background"}`;
    });
    document.getElementById("here").textContent = `At the crosshair: ${names.join("; ")}.`;
  };
  await viewer.attachToCanvas(document.getElementById("canvas"));
  // The image's bytes fill the window that the page names.
  const window = { colormap: "gray", cal_min: 0, cal_max: 255 };
  viewer.addVolume(await niivue.NVImage.loadFromBase64({ base64: DATA.image, name: "image.nii.gz", ...window }));
  for (const layer of DATA.layers) {
    const volume = await niivue.NVImage.loadFromBase64({ base64: layer.base64, name: `${layer.name}.nii.gz`, opacity: 0 });
    volume.setColormapLabel(DATA.colours);
    viewer.addVolume(volume);
  }
  let layer = DATA.layers.length - 1;
  let plane = "multi";
  function draw() {
    // In 3D the image would hide the structures.
    const solid = plane === "render" && layer >= 0;
    viewer.setOpacity(0, solid ? 0 : 1);
    DATA.layers.forEach((_, index) => viewer.setOpacity(index + 1, index === layer ? (solid ? 1 : 0.55) : 0));
    viewer.setSliceType(PLANES[plane]);
    mark("layer", String(layer));
    mark("plane", plane);
  }
  for (const button of document.querySelectorAll("button[data-layer]")) {
    button.addEventListener("click", () => {
      layer = Number(button.dataset.layer);
      draw();
    });
  }
  for (const button of document.querySelectorAll("button[data-plane]")) {
    button.addEventListener("click", () => {
      plane = button.dataset.plane;
      draw();
    });
  }
  viewer.setInterpolation(true);
  draw();
  document.title = `${document.title} (ready)`;
}

start().catch((error) => {
  document.getElementById("problem").textContent = `This page cannot be shown: ${error}. It needs WebGL 2.`;
});
