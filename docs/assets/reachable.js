// Tables that are wider than the page are scrolled by keyboard, too: the theme wraps them while a page is opened.
document$.subscribe(() => {
  for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap, .dataframe")) wrap.tabIndex = 0;
});
