"""`vsr1 serve`: a home behind HTTP, as a JSON API and one page. The only package that imports FastAPI.

`app` puts the parts together; `engine` searches, `library` reads tables, `media` gives pictures and videos, `guards`
refuses what must not come in. A new part of the API is a module with a router, named in `app.ROUTERS`.
"""
