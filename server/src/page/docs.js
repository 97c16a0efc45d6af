"use strict";

// An element with its class and what is in it; texts are never read as HTML.
function make(name, kind, ...inside) {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  element.append(...inside);
  return element;
}

let whole = null;

const found = (value) =>
  value.$ref ? value.$ref.slice(2).split("/").reduce((at, part) => at[part], whole) : value;

// The fields of a schema, those of all its parts, with whether each is required.
function fields(schema) {
  schema = found(schema);
  const parts = (schema.allOf || []).flatMap(fields);
  const required = schema.required || [];
  const own = Object.entries(schema.properties || {}).map(([name, value]) => [name, found(value), required.includes(name)]);
  return [...own.filter((field) => field[2]), ...parts, ...own.filter((field) => !field[2])];
}

function kind(schema) {
  schema = found(schema);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.oneOf) return schema.oneOf.map(kind).join(" or ");
  if (schema.type === "array") return `list of ${schema.items ? kind(schema.items) : "anything"}`;
  return [schema.type || "object"].flat().join(" or ");
}

function range(schema) {
  const words = [];
  if (schema.minimum !== undefined) words.push(`from ${schema.minimum}`);
  if (schema.exclusiveMinimum !== undefined) words.push(`above ${schema.exclusiveMinimum}`);
  if (schema.maximum !== undefined) words.push(`to ${schema.maximum}`);
  if (schema.default !== undefined) words.push(`[${JSON.stringify(schema.default)}]`);
  return words.join(" ");
}

function table(rows) {
  const body = make("tbody", "");
  for (const [name, schema, required] of rows) {
    const label = make("td", "", make("code", "", name));
    if (required) label.append(" *");
    body.append(make("tr", "", label, make("td", "quiet", `${kind(schema)} ${range(schema)}`), make("td", "", schema.description || "")));
  }
  return make("div", "scroll", make("table", "", body));
}

function example(method, path, value) {
  const body = value === undefined ? "" : ` \\\n  -d '${JSON.stringify(value).replaceAll("'", "'\\''")}'`;
  const verb = ["get", "post"].includes(method) ? "" : ` -X ${method.toUpperCase()}`;
  return make("pre", "", make("code", "", `curl${verb} ${location.origin}${path}${body}`));
}

function route(path, method, operation) {
  const inside = make("div", "route");
  const parameters = operation.parameters || [];
  if (parameters.length) {
    inside.append(table(parameters.map((one) => [one.name, { description: one.description, ...one.schema }, one.required])));
  }
  const request = operation.requestBody && operation.requestBody.content["application/json"];
  if (request && request.schema) inside.append(make("h3", "", "Body"), table(fields(request.schema)));
  for (const [status, answer] of Object.entries(operation.responses)) {
    const told = found(answer);
    inside.append(make("p", "", make("b", status < "300" ? "good" : "bad", status), ` ${told.description}`));
    const content = status < "300" && Object.values(told.content || {})[0];
    if (content && content.schema && fields(content.schema).length) inside.append(table(fields(content.schema)));
  }
  inside.append(example(method, path, request && request.example));
  const name = make("summary", "", make("b", "", method.toUpperCase()), " ", make("code", "", path), make("span", "quiet", ` ${operation.summary}`));
  return make("details", "", name, inside);
}

async function show() {
  whole = await (await fetch("/openapi.json")).json();
  document.getElementById("version").textContent = whole.info.version;
  document.getElementById("about").textContent = `${whole.info.description} Fields with * must be there.`;
  const sections = new Map();
  for (const [path, methods] of Object.entries(whole.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags[0];
      if (!sections.has(tag)) sections.set(tag, make("section", "", make("h2", "", tag)));
      sections.get(tag).append(route(path, method, operation));
    }
  }
  document.getElementById("routes").append(...sections.values());
}

show().catch((error) => {
  document.getElementById("about").textContent = `The document cannot be shown: ${error}`;
});
