// One page of the pack's documentation, guide.html?<its place in the pack>, as the browser shows it.
import { marked } from "./vendor/marked/marked.esm.mjs";

const SERVED = "../../fewstep/guides/"; // from /extensions/<pack>/, wherever the server's own root is
const HERE = "http://pack/"; // links that stay in the pack are relative
const PAGE = /^[\w-]+(\/[\w-]+)*\.md$/; // what this shows may run scripts: nothing else that the server has, a user's file say

const page = decodeURIComponent(location.search.slice(1));
const main = document.querySelector("main");

const answer = PAGE.test(page) ? await fetch(SERVED + page) : new Response(`There is no page ${page}.`, { status: 404 });
const text = await answer.text();
if (answer.ok) main.innerHTML = marked.parse(text);
else main.textContent = text;
for (const link of main.querySelectorAll("a[href]")) follow(link, "href");
for (const picture of main.querySelectorAll("img")) follow(picture, "src");
document.title = `${main.querySelector("h1")?.textContent ?? page} - FewStep`;

/** Other pages open here, other files from the server; what is a folder, or elsewhere in the pack, leads nowhere. */
function follow(element, name) {
  const to = new URL(element.getAttribute(name), HERE + page);
  if (!to.href.startsWith(HERE)) return;
  const place = to.pathname.slice(1);
  if (place.endsWith(".md")) element.setAttribute(name, `?${place}`);
  else if (/\.(json|png)$/.test(place)) element.setAttribute(name, SERVED + place);
  else element.removeAttribute(name);
}
